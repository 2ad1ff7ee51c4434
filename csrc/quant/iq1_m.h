// IQ1_M: blocks of 256 values in 16 groups of 16, value = (d * (2 s + 1)) * (t +- 1/8) with t in
// {-1, 0, 1} from the codebook of IQ1_S, a 3-bit s per group, the sign of 1/8 per 8 values.
//
//   bytes 0-31   low eight bits of the point index of values 8 p ... 8 p + 7, p in order
//   bytes 32-47  point p in byte p / 2, half p % 2: high three bits of the index, bit 3 for -1/8
//   bytes 48-55  four little-endian 16-bit words: s of group g in word g / 4 at bit 3 (g % 4);
//                their top four bits are d, binary16, lowest first
//
// The integer view counts eighths: u - 9 = 8 t +- 1.
//
// 56 bytes per 256 values, 1.75 bits per weight.
#pragma once

#include "quant/integer_view.h"
#include "quant/iq1_grid.h"

namespace kt::quant {

struct IQ1_M {
  static constexpr char kName[] = "iq1_m";
  static constexpr int kGgufId = 29;
  static constexpr int kValues = 256;
  static constexpr int kGroup = 16;
  static constexpr int kOffset = 9;
  static constexpr int kMaxU = 18;
  static constexpr bool kHasMin = false;
  struct Block {
    uint8_t qs[32];
    uint8_t qh[16];
    uint16_t scales[4];
  };
};
static_assert(sizeof(IQ1_M::Block) == 56);

/// R16: scales; for every two groups, the word of their upper bits and then those of their points.
[[gnu::always_inline]] static inline constexpr int r16_place(IQ1_M, int w) {
  if (w >= 12) return w - 12;
  return w < 8 ? 3 + 3 * (w / 2) + w % 2 : 2 + 3 * (w - 8);
}

static inline void unpack_ints(const IQ1_M::Block& block, uint8_t* u, float* scale, float*) {
  for (int p = 0; p < 32; ++p) {
    const int high = block.qh[p / 2] >> (p % 2 * 4);
    const int zero = IQ1_M::kOffset + (high & 8 ? -1 : 1);  // u of t = 0
    const uint16_t point = kIq1Grid[block.qs[p] | (high & 7) << 8];
    for (int i = 0; i < 8; ++i) *u++ = (uint8_t)(zero + 8 * (((point >> (2 * i)) & 3) - 1));
  }
  uint16_t bits = 0;
  for (int w = 0; w < 4; ++w) bits |= (uint16_t)(block.scales[w] >> 12 << (4 * w));
  const float d = half_to_float(bits);
  for (int g = 0; g < 16; ++g) {
    const int s = (block.scales[g / 4] >> (g % 4 * 3)) & 7;
    scale[g] = d * (float)(2 * s + 1) * 0.125f;  // exact
  }
}

static inline void unpack(const IQ1_M::Block& block, float* out) {
  unpack_groups<IQ1_M>(block, out);
}

}  // namespace kt::quant
