#!/usr/bin/env bash
# Runs one step of `make test`, prints its wall time and keeps it for the table at the end.
#
#   scripts/step.sh NAME COMMAND...
set -u
name=$1
shift
mkdir -p "${KT_REPORT:-build/report}"
printf '\n== %s\n' "$name"
start=$(date +%s.%N)
"$@"
status=$?
seconds=$(awk -v a="$start" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
printf '%s\t%s\t%s\n' "$name" "$seconds" "$status" >>"${KT_REPORT:-build/report}/steps.tsv"
printf '== %s: %s s, exit %s\n' "$name" "$seconds" "$status"
exit "$status"
