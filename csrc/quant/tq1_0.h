// TQ1_0: blocks of 256 values, value = d * (t - 1) with ternary digits t, five to a byte.
//
// A byte b holds its digits as the fraction b / 256 in base 3: digit n is the integer part of
// 3 * frac(3^n * b / 256). It is b = ceil(256 * N / 243) for the number N of five digits.
//
//   bytes 0-31   values 0-159: digit n of byte j is value 32 n + j, n in 0..4
//   bytes 32-47  values 160-239: digit n of byte 32 + j is value 160 + 16 n + j, n in 0..4
//   bytes 48-51  values 240-255: digit n of byte 48 + j is value 240 + 4 n + j, n in 0..3
//   bytes 52-53  d, binary16
//
// 54 bytes per 256 values, 1.6875 bits per weight.
#pragma once

#include "quant/integer_view.h"

namespace kt::quant {

struct TQ1_0 {
  static constexpr char kName[] = "tq1_0";
  static constexpr int kGgufId = 34;
  static constexpr int kValues = 256;
  static constexpr int kGroup = 32;
  static constexpr int kOffset = 1;
  static constexpr int kMaxU = 2;
  static constexpr bool kHasMin = false;
  static constexpr bool kHeadAtEnd = true;
  struct Block {
    uint8_t qs[52];
    uint16_t d;
  };
};
static_assert(sizeof(TQ1_0::Block) == 54);

/// `width` bytes -> `digits` runs of `width` digits.
static inline void unpack_ternary(const uint8_t* bytes, int width, int digits, uint8_t* u) {
  for (int j = 0; j < width; ++j) {
    int fraction = bytes[j];
    for (int n = 0; n < digits; ++n) {
      u[n * width + j] = (uint8_t)(fraction * 3 >> 8);
      fraction = fraction * 3 & 255;
    }
  }
}

static inline void unpack_ints(const TQ1_0::Block& block, uint8_t* u, float* scale, float*) {
  unpack_ternary(block.qs, 32, 5, u);
  unpack_ternary(block.qs + 32, 16, 5, u + 160);
  unpack_ternary(block.qs + 48, 4, 4, u + 240);
  for (int g = 0; g < 8; ++g) scale[g] = half_to_float(block.d);
}

static inline void unpack(const TQ1_0::Block& block, float* out) {
  unpack_groups<TQ1_0>(block, out);
}

}  // namespace kt::quant
