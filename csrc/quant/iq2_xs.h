// IQ2_XS: blocks of 256 values in 16 groups of 16, value = (d * (s + 1/2) / 4) * sign * magnitude,
// a 4-bit s per group, magnitudes from a codebook of 512 points of 8 values.
//
//   bytes 0-1    d, binary16
//   bytes 2-65   one little-endian 16-bit word per 8 values: point index in bits 0-8, a 7-bit sign
//                pattern (iq_signs.h) in bits 9-15
//   bytes 66-73  s: group g in byte g / 2, half g % 2
//
// 74 bytes per 256 values, 2.3125 bits per weight.
#pragma once

#include "quant/integer_view.h"
#include "quant/iq2_grids.h"
#include "quant/iq_signs.h"

namespace kt::quant {

struct IQ2_XS {
  static constexpr char kName[] = "iq2_xs";
  static constexpr int kGgufId = 17;
  static constexpr int kValues = 256;
  static constexpr int kGroup = 16;
  static constexpr int kOffset = 43;
  static constexpr int kMaxU = 86;
  static constexpr bool kHasMin = false;
  struct Block {
    uint16_t d;
    uint16_t qs[32];
    uint8_t scales[8];
  };
};
static_assert(sizeof(IQ2_XS::Block) == 74);

/// R16: scales; points.
[[gnu::always_inline]] static inline constexpr int r16_place(IQ2_XS, int w) {
  return w < 16 ? w + 2 : w - 16;
}

static inline void unpack_ints(const IQ2_XS::Block& block, uint8_t* u, float* scale, float*) {
  for (int p = 0; p < 32; ++p) {
    const uint16_t point = kIq2xsGrid[block.qs[p] & 511];
    const int signs = even_signs(block.qs[p] >> 9);
    for (int i = 0; i < 8; ++i)
      *u++ = apply_sign(kIq2Levels[(point >> (2 * i)) & 3], signs >> i, IQ2_XS::kOffset);
  }
  const float d = half_to_float(block.d);
  for (int g = 0; g < 16; ++g) {
    const int s = (block.scales[g / 2] >> (g % 2 * 4)) & 15;
    scale[g] = d * (0.5f + (float)s) * 0.25f;
  }
}

static inline void unpack(const IQ2_XS::Block& block, float* out) {
  unpack_groups<IQ2_XS>(block, out);
}

}  // namespace kt::quant
