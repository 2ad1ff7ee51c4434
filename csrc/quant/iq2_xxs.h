// IQ2_XXS: blocks of 256 values in 8 groups of 32, value = (d * (s + 1/2) / 4) * sign * magnitude,
// a 4-bit s per group, magnitudes from a codebook of 256 points of 8 values.
//
//   bytes 0-1   d, binary16
//   bytes 2-65  8 bytes per group: four point indices, then a little-endian word with four 7-bit
//               sign patterns (iq_signs.h) from bit 0 and s in its top 4 bits
//
// 66 bytes per 256 values, 2.0625 bits per weight.
#pragma once

#include "quant/integer_view.h"
#include "quant/iq2_grids.h"
#include "quant/iq_signs.h"

namespace kt::quant {

struct IQ2_XXS {
  static constexpr char kName[] = "iq2_xxs";
  static constexpr int kGgufId = 16;
  static constexpr int kValues = 256;
  static constexpr int kGroup = 32;
  static constexpr int kOffset = 43;
  static constexpr int kMaxU = 86;
  static constexpr bool kHasMin = false;
  struct Block {
    uint16_t d;
    struct Group {
      uint8_t points[4];
      uint8_t signs_and_scale[4];
    } groups[8];
  };
};
static_assert(sizeof(IQ2_XXS::Block) == 66);

static inline void unpack_ints(const IQ2_XXS::Block& block, uint8_t* u, float* scale, float*) {
  const float d = half_to_float(block.d);
  for (int g = 0; g < 8; ++g) {
    uint32_t word;
    memcpy(&word, block.groups[g].signs_and_scale, 4);
    for (int p = 0; p < 4; ++p) {
      const uint16_t point = kIq2xxsGrid[block.groups[g].points[p]];
      const int signs = even_signs((int)(word >> (7 * p)) & 127);
      for (int i = 0; i < 8; ++i)
        *u++ = apply_sign(kIq2Levels[(point >> (2 * i)) & 3], signs >> i, IQ2_XXS::kOffset);
    }
    scale[g] = d * (0.5f + (float)(word >> 28)) * 0.25f;
  }
}

static inline void unpack(const IQ2_XXS::Block& block, float* out) {
  unpack_groups<IQ2_XXS>(block, out);
}

}  // namespace kt::quant
