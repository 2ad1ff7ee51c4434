#!/usr/bin/env bash
# Builds the CUDA library beside the package's core, for the cards of this machine:
#   scripts/cuda.sh VENV          what `make cuda` calls
# nvcc is the system's, if there is one, else NVIDIA's own from PyPI, kept in .cache/nvcc (100 MB).
# CUDA_ARCH=90 builds for a card that is not here.
set -eu
cd "$(dirname "$0")/.."
venv=$1
build=${BUILD:-build}/cuda

arch=${CUDA_ARCH:-}
if [ -z "$arch" ]; then
  smi=$(command -v nvidia-smi || true)
  [ -n "$smi" ] || { echo "error: no NVIDIA driver here (no nvidia-smi); CUDA_ARCH=90 builds for a card of compute capability 9.0 elsewhere" >&2; exit 1; }
  arch=$("$smi" --query-gpu=compute_cap --format=csv,noheader | tr -d . | sort -un | paste -sd';')
  [ -n "$arch" ] || { echo "error: nvidia-smi names no card" >&2; exit 1; }
fi
for one in ${arch//;/ }; do
  [ "$one" -ge 75 ] 2>/dev/null || { echo "error: compute capability $one: cards from 75 (Turing) on are supported" >&2; exit 1; }
done

nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null || true)
if [ -z "$nvcc" ] || [ -n "${NVCC_FROM_PYPI:-}" ]; then
  home=$PWD/.cache/nvcc/nvidia/cu13
  if [ ! -x "$home/bin/nvcc" ]; then
    rm -rf .cache/nvcc
    scripts/pip.sh "$venv" install --no-deps --target .cache/nvcc 'nvidia-cuda-nvcc==13.0.*' \
      'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-runtime==13.0.*' \
      'nvidia-cuda-cccl==13.0.*'
    ln -sfn lib "$home/lib64"   # where nvcc and CMake look
    chmod -R u+x "$home/bin" "$home/nvvm/bin"
  fi
  nvcc=$home/bin/nvcc
fi
echo "nvcc: $nvcc, for compute capability $arch"
cmake -S . -B "$build" -G Ninja -DKT_CUDA=ON -DKT_BUILD_PYTHON=OFF -DKT_BUILD_TESTS=OFF \
  -DCMAKE_CUDA_COMPILER="$nvcc" -DCMAKE_CUDA_ARCHITECTURES="$arch" \
  -DKT_OUTPUT_DIR="$PWD/ktransformers"
cmake --build "$build" --target kt_cuda
"$venv/bin/python" -c 'from ktransformers.cuda_library import CudaLibrary; print("built:", CudaLibrary().path)'
