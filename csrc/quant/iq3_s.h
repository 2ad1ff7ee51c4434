// IQ3_S: blocks of 256 values in 8 groups of 32, value = (d * (2 s + 1)) * sign * magnitude,
// a 4-bit s per group, magnitudes from a codebook of 512 points of 4 values.
//
//   bytes 0-1      d, binary16
//   bytes 2-65     low eight bits of the point index of values 4 p ... 4 p + 3, p in order
//   bytes 66-73    ninth bit of the index: point p in byte p / 8 at bit p % 8
//   bytes 74-105   signs: bit i of byte b is set where value 8 b + i is negative
//   bytes 106-109  s: group g in byte g / 2, half g % 2
//
// 110 bytes per 256 values, 3.4375 bits per weight.
#pragma once

#include "quant/integer_view.h"
#include "quant/iq3_grids.h"
#include "quant/iq_signs.h"

namespace kt::quant {

struct IQ3_S {
  static constexpr char kName[] = "iq3_s";
  static constexpr int kGgufId = 21;
  static constexpr int kValues = 256;
  static constexpr int kGroup = 32;
  static constexpr int kOffset = 15;
  static constexpr int kMaxU = 30;
  static constexpr bool kHasMin = false;
  struct Block {
    uint16_t d;
    uint8_t qs[64];
    uint8_t qh[8];
    uint8_t signs[32];
    uint8_t scales[4];
  };
};
static_assert(sizeof(IQ3_S::Block) == 110);

/// R16: upper bits and scales; for every group, its signs and the words of its points.
[[gnu::always_inline]] static inline constexpr int r16_place(IQ3_S, int w) {
  if (w == 26) return 2;
  if (w >= 18) return 3 + 3 * (w - 18);
  return w < 16 ? 4 + 3 * (w / 2) + w % 2 : w - 16;
}

static inline void unpack_ints(const IQ3_S::Block& block, uint8_t* u, float* scale, float*) {
  for (int p = 0; p < 64; ++p) {
    const int high = (block.qh[p / 8] >> (p % 8)) & 1;
    const uint16_t point = kIq3sGrid[block.qs[p] | high << 8];
    const int signs = block.signs[p / 2] >> (p % 2 * 4);
    for (int i = 0; i < 4; ++i)
      *u++ = apply_sign(kIq3sLevels[(point >> (3 * i)) & 7], signs >> i, IQ3_S::kOffset);
  }
  const float d = half_to_float(block.d);
  for (int g = 0; g < 8; ++g) {
    const int s = (block.scales[g / 2] >> (g % 2 * 4)) & 15;
    scale[g] = d * (float)(1 + 2 * s);
  }
}

static inline void unpack(const IQ3_S::Block& block, float* out) {
  unpack_groups<IQ3_S>(block, out);
}

}  // namespace kt::quant
