// NVFP4: blocks of 64 values in 4 groups of 16, value = UE4M3(e) * E2M1(q), an 8-bit e per group.
// (The scale per tensor that the format has besides is a tensor of its own in a GGUF file.)
//
//   bytes 0-3   e, one byte per group: 4 exponent bits (bias 7) and 3 mantissa bits below them
//   bytes 4-35  nibbles, 8 bytes per group: the low half of byte j is its value j, the high half
//               its value j + 8
//
// 36 bytes per 64 values, 4.5 bits per weight.
#pragma once

#include "quant/fp4.h"
#include "quant/integer_view.h"

namespace kt::quant {

struct NVFP4 {
  static constexpr char kName[] = "nvfp4";
  static constexpr int kGgufId = 40;
  static constexpr int kValues = 64;
  static constexpr int kGroup = 16;
  static constexpr int kOffset = 12;
  static constexpr int kMaxU = 24;
  static constexpr bool kHasMin = false;
  struct Block {
    uint8_t e[4];
    uint8_t qs[32];
  };
};
static_assert(sizeof(NVFP4::Block) == 36);

/// Half of the value of a UE4M3 byte, exact; 0x7F (NaN) gives 0. The top bit is not part of it.
static inline float half_ue4m3(uint8_t e) {
  const uint32_t exponent = (e >> 3) & 15u;
  const uint32_t mantissa = e & 7u;
  if (e == 0x7F) return 0.0f;
  if (exponent == 0) return (float)mantissa * 0.0009765625f;  // 2^-10
  return bits_to_float((exponent + 119u) << 23 | mantissa << 20);
}

static inline void unpack_ints(const NVFP4::Block& block, uint8_t* u, float* scale, float*) {
  for (int g = 0; g < 4; ++g) {
    for (int j = 0; j < 8; ++j) {
      u[16 * g + j] = kFp4Levels[block.qs[8 * g + j] & 15];
      u[16 * g + 8 + j] = kFp4Levels[block.qs[8 * g + j] >> 4];
    }
    scale[g] = half_ue4m3(block.e[g]);
  }
}

static inline void unpack(const NVFP4::Block& block, float* out) {
  unpack_groups<NVFP4>(block, out);
}

}  // namespace kt::quant
