#!/usr/bin/env bash
# Whether nvcc takes every kernel, unoptimised and without assembling: seconds, where building them
# takes minutes (`make check` builds them for every card).
#   tests/tools/nvcc.sh [COMPUTE_CAPABILITY] [FOLDER OF csrc/cuda]     90 and all of them by default
set -eu
cd "$(dirname "$0")/../.."
export arch=${1:-90}
find "csrc/cuda/${2:-}" -name '*.cu' -print0 | xargs -0 -P "$(nproc)" -n 1 bash -c '
  nvcc -std=c++20 --expt-relaxed-constexpr -diag-suppress=177 -Icsrc -arch="compute_$arch" \
    -Xcicc -O0 -ptx "$0" -o /dev/null || { echo "error: nvcc refuses $0" >&2; exit 255; }'
echo "nvcc takes every kernel for compute capability $arch"
