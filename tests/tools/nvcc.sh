#!/usr/bin/env bash
# Whether nvcc takes every kernel, unoptimised and without assembling: seconds, where building them
# takes minutes (`make check` builds them for every card). Without a folder also whether the tests
# that run on a card compile against the stand-in for GoogleTest.
#   tests/tools/nvcc.sh [COMPUTE_CAPABILITY] [FOLDER OF csrc/cuda]     90 and all of them by default
set -eu
cd "$(dirname "$0")/../.."
export arch=${1:-90}
find "csrc/cuda/${2:-}" -name '*.cu' -print0 | xargs -0 -P "$(nproc)" -n 1 bash -c '
  nvcc -std=c++20 --expt-relaxed-constexpr -diag-suppress=177 -Icsrc -arch="compute_$arch" \
    -Xcicc -O0 -ptx "$0" -o /dev/null || { echo "error: nvcc refuses $0" >&2; exit 255; }'
echo "nvcc takes every kernel for compute capability $arch"
[ -z "${2:-}" ] || exit 0
find tests/cpp/cuda tests/gpu -name '*_test.cpp' ! -name emulator_test.cpp ! -name gtest_self_test.cpp \
  -print0 | xargs -0 -P "$(nproc)" -n 1 bash -c '
  nvcc -std=c++20 -x c++ -c -Xcompiler -fsyntax-only,-Wall,-Wextra -DKT_TEST_ON_GPU -Icsrc -Itests/gpu \
    "$0" -o /dev/null || { echo "error: the GPU tests do not compile: $0" >&2; exit 255; }'
echo "the tests for a card compile"
