#!/usr/bin/env bash
# Other engines to compare with, in an environment of their own; nothing of ours depends on them.
# llama-cpp-python is compiled here for this machine's CPU; PEERS names a subset.
set -eu
cd "$(dirname "$0")/.."
venv=.venv-peers
[ -x $venv/bin/python ] || "${PYTHON:-python3}" -m venv $venv
for peer in ${PEERS:-llama-cpp-python xllamacpp kt-kernel}; do
  case $peer in
    llama-cpp-python) CMAKE_ARGS="-DGGML_NATIVE=ON" scripts/pip.sh $venv install "$peer" ;;
    kt-kernel) scripts/pip.sh $venv install --no-deps "$peer" ;; # its torch pin would pull gigabytes
    *) scripts/pip.sh $venv install "$peer" ;;
  esac
done
$venv/bin/python -m pip list --disable-pip-version-check | grep -i -E 'llama|kt'
