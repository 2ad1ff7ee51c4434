#!/bin/sh
# Builds and installs ktransformers: into the active virtual or conda environment, else into ./.venv.
set -e
cd "$(dirname "$0")"
command -v make >/dev/null || { echo "error: make is missing; run: apt-get install -y make" >&2; exit 1; }
exec make install VENV="${VIRTUAL_ENV:-${CONDA_PREFIX:-.venv}}"
