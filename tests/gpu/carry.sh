#!/usr/bin/env bash
# Fetches into .gpu/ what check.sh needs and a bare machine lacks: yaml-cpp as Debian packages, two
# pure Python packages as wheels. Run it on a machine with a network and take .gpu/ along (< 4 MB).
set -eu
cd "$(dirname "$0")/../.."
mkdir -p .gpu
rm -f .gpu/*.deb .gpu/*.whl
(cd .gpu && apt-get download -q libyaml-cpp-dev libyaml-cpp0.7)
"${PYTHON:-python3}" -m pip download -q --no-deps --only-binary=:all: -d .gpu gguf==0.19.0 'pybind11>=3'
ls -l .gpu
