// IQ3_XXS: blocks of 256 values in 8 groups of 32, value = (d * (s + 1/2) / 2) * sign * magnitude,
// a 4-bit s per group, magnitudes from a codebook of 256 points of 4 values.
//
//   bytes 0-1    d, binary16
//   bytes 2-65   point index of values 4 p ... 4 p + 3, p in order
//   bytes 66-97  a little-endian word per group: four 7-bit sign patterns (iq_signs.h), each for
//                8 values, from bit 0, and s in the top 4 bits
//
// 98 bytes per 256 values, 3.0625 bits per weight.
#pragma once

#include "quant/integer_view.h"
#include "quant/iq3_grids.h"
#include "quant/iq_signs.h"

namespace kt::quant {

struct IQ3_XXS {
  static constexpr char kName[] = "iq3_xxs";
  static constexpr int kGgufId = 18;
  static constexpr int kValues = 256;
  static constexpr int kGroup = 32;
  static constexpr int kOffset = 62;
  static constexpr int kMaxU = 124;
  static constexpr bool kHasMin = false;
  struct Block {
    uint16_t d;
    uint8_t qs[64];
    uint8_t signs_and_scale[8][4];
  };
};
static_assert(sizeof(IQ3_XXS::Block) == 98);

/// R16: for every group, its signs and scale and then the words of its points.
[[gnu::always_inline]] static inline constexpr int r16_place(IQ3_XXS, int w) {
  return w < 16 ? 3 * (w / 2) + 1 + w % 2 : 3 * (w - 16);
}

static inline void unpack_ints(const IQ3_XXS::Block& block, uint8_t* u, float* scale, float*) {
  const float d = half_to_float(block.d);
  for (int g = 0; g < 8; ++g) {
    uint32_t word;
    memcpy(&word, block.signs_and_scale[g], 4);
    for (int p = 0; p < 8; ++p) {
      const uint16_t point = kIq3xxsGrid[block.qs[8 * g + p]];
      const int signs = even_signs((int)(word >> (p / 2 * 7)) & 127) >> (p % 2 * 4);
      for (int i = 0; i < 4; ++i)
        *u++ = apply_sign(kIq3xxsLevels[(point >> (3 * i)) & 7], signs >> i, IQ3_XXS::kOffset);
    }
    scale[g] = d * (0.5f + (float)(word >> 28)) * 0.5f;
  }
}

static inline void unpack(const IQ3_XXS::Block& block, float* out) {
  unpack_groups<IQ3_XXS>(block, out);
}

}  // namespace kt::quant
