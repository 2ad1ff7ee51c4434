// IQ1_S: blocks of 256 values in 8 groups of 32, value = (d * (2 s + 1)) * (t +- 1/8) with t in
// {-1, 0, 1} from a codebook of 2048 points of 8 values, a 3-bit s and the sign of 1/8 per group.
//
//   bytes 0-1    d, binary16
//   bytes 2-33   low eight bits of the point index of values 8 p ... 8 p + 7, p in order
//   bytes 34-49  a little-endian 16-bit word per group: the high three bits of its four indices
//                from bit 0, s in bits 12-14, bit 15 set for -1/8
//
// The integer view counts eighths: u - 9 = 8 t +- 1.
//
// 50 bytes per 256 values, 1.5625 bits per weight.
#pragma once

#include "quant/integer_view.h"
#include "quant/iq1_grid.h"

namespace kt::quant {

struct IQ1_S {
  static constexpr char kName[] = "iq1_s";
  static constexpr int kGgufId = 19;
  static constexpr int kValues = 256;
  static constexpr int kGroup = 32;
  static constexpr int kOffset = 9;
  static constexpr int kMaxU = 18;
  static constexpr bool kHasMin = false;
  struct Block {
    uint16_t d;
    uint8_t qs[32];
    uint16_t qh[8];
  };
};
static_assert(sizeof(IQ1_S::Block) == 50);

/// R16: for every two groups, the word of their upper bits and then those of their points.
[[gnu::always_inline]] static inline constexpr int r16_place(IQ1_S, int w) {
  return w < 8 ? 3 * (w / 2) + 1 + w % 2 : 3 * (w - 8);
}

static inline void unpack_ints(const IQ1_S::Block& block, uint8_t* u, float* scale, float*) {
  const float d = half_to_float(block.d);
  for (int g = 0; g < 8; ++g) {
    const int word = block.qh[g];
    const int zero = IQ1_S::kOffset + (word & 0x8000 ? -1 : 1);  // u of t = 0
    for (int p = 0; p < 4; ++p) {
      const uint16_t point = kIq1Grid[block.qs[4 * g + p] | ((word >> (3 * p)) & 7) << 8];
      for (int i = 0; i < 8; ++i) *u++ = (uint8_t)(zero + 8 * (((point >> (2 * i)) & 3) - 1));
    }
    scale[g] = d * (float)(2 * ((word >> 12) & 7) + 1) * 0.125f;  // exact
  }
}

static inline void unpack(const IQ1_S::Block& block, float* out) {
  unpack_groups<IQ1_S>(block, out);
}

}  // namespace kt::quant
