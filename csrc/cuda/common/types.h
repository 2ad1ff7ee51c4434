// Types both sides of a launch share: 16-bit floats as bits, small vectors, the shape of a launch.
// Plain C++, so that host code and the emulated kernels use the same ones as nvcc.
#pragma once

#include <stdint.h>

namespace kt::cuda {

/// IEEE binary16 and bfloat16 in memory; arithmetic goes through the functions of device.h.
struct half_t {
  uint16_t bits;
};
struct bf16_t {
  uint16_t bits;
};
/// FP8 E4M3 (finite only: S.1111.111 is NaN, the largest value is 448).
struct fp8_t {
  uint8_t bits;
};

/// 8 and 16 bytes that move in one instruction.
struct alignas(8) Words2 {
  uint32_t x[2];
};
struct alignas(16) Words4 {
  uint32_t x[4];
};
struct alignas(8) Float2 {
  float x[2];
};
struct alignas(16) Float4 {
  float x[4];
};

/// A cudaStream_t; null where kernels are emulated.
using Stream = void*;

/// Grid and block of a launch; shared_bytes is dynamic shared memory.
struct LaunchShape {
  unsigned grid_x = 1, grid_y = 1, grid_z = 1;
  unsigned threads = 32;
  unsigned shared_bytes = 0;
};

/// Bytes of shared memory that a block may have at most. arch: 90 for compute capability 9.0.
constexpr unsigned most_shared_bytes(int arch) {
  return (arch < 80 ? 64u : arch == 80 ? 163u : arch == 90 || arch == 100 ? 227u : 99u) << 10;
}

template <class T>
constexpr T div_up(T a, T b) {
  return (a + b - 1) / b;
}

template <class T>
constexpr T round_up(T a, T b) {
  return div_up(a, b) * b;
}

}  // namespace kt::cuda
