#!/bin/sh
# USE_NUMA is what upstream's builds asked for; here NUMA is found when the program runs.
[ -z "${USE_NUMA:-}" ] || echo 'USE_NUMA: nothing to switch on, every build finds the NUMA nodes when it runs and stores each weight once'
