#!/usr/bin/env bash
# clang-format of one version over the C++ sources: scripts/clang_format.sh VENV -i|--dry-run ...
set -eu
cd "$(dirname "$0")/.."
venv=$1
shift
[ -x "$venv/bin/clang-format" ] || scripts/pip.sh "$venv" install 'clang-format==19.1.7'
git ls-files 'csrc/*.h' 'csrc/*.cpp' 'tests/*.h' 'tests/*.cpp' | xargs -r "$venv/bin/clang-format" "$@"
