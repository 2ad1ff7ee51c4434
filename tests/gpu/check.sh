#!/usr/bin/env bash
# Builds, tests and measures everything on a machine with an NVIDIA GPU, in less than ten minutes and
# without a network:
#
#   bash tests/gpu/check.sh               all of it; table at the end, report.json and log in $OUT
#   bash tests/gpu/check.sh --dry-run     lists the steps, and what of them this machine cannot do
#   bash tests/gpu/check.sh --only cuda-build,cuda-bench
#
# What a bare machine lacks (yaml-cpp, gguf) is brought along by tests/gpu/carry.sh.
cd "$(dirname "$0")/../.." || exit 1
exec "${PYTHON:-python3}" tests/gpu/check.py "$@"
