// IQ2_S: blocks of 256 values in 16 groups of 16, value = (d * (s + 1/2) / 4) * sign * magnitude,
// a 4-bit s per group, magnitudes from a codebook of 1024 points of 8 values.
//
//   bytes 0-1    d, binary16
//   bytes 2-33   low eight bits of the point index of values 8 p ... 8 p + 7, p in order
//   bytes 34-65  their signs: bit i is set where value 8 p + i is negative
//   bytes 66-73  high two bits of the index: point p in byte p / 4 at bit 2 (p % 4)
//   bytes 74-81  s: group g in byte g / 2, half g % 2
//
// 82 bytes per 256 values, 2.5625 bits per weight.
#pragma once

#include "quant/integer_view.h"
#include "quant/iq2_grids.h"
#include "quant/iq_signs.h"

namespace kt::quant {

struct IQ2_S {
  static constexpr char kName[] = "iq2_s";
  static constexpr int kGgufId = 22;
  static constexpr int kValues = 256;
  static constexpr int kGroup = 16;
  static constexpr int kOffset = 43;
  static constexpr int kMaxU = 86;
  static constexpr bool kHasMin = false;
  struct Block {
    uint16_t d;
    uint8_t qs[32];
    uint8_t signs[32];
    uint8_t qh[8];
    uint8_t scales[8];
  };
};
static_assert(sizeof(IQ2_S::Block) == 82);

/// R16: upper bits and scales; for every group, its points and their signs.
[[gnu::always_inline]] static inline constexpr int r16_place(IQ2_S, int w) {
  if (w >= 16) return w - 16;
  return w < 8 ? 4 + 2 * w : 5 + 2 * (w - 8);
}

static inline void unpack_ints(const IQ2_S::Block& block, uint8_t* u, float* scale, float*) {
  for (int p = 0; p < 32; ++p) {
    const int high = (block.qh[p / 4] >> (p % 4 * 2)) & 3;
    const uint16_t point = kIq2sGrid[block.qs[p] | high << 8];
    for (int i = 0; i < 8; ++i)
      *u++ = apply_sign(kIq2Levels[(point >> (2 * i)) & 3], block.signs[p] >> i, IQ2_S::kOffset);
  }
  const float d = half_to_float(block.d);
  for (int g = 0; g < 16; ++g) {
    const int s = (block.scales[g / 2] >> (g % 2 * 4)) & 15;
    scale[g] = d * (0.5f + (float)s) * 0.25f;
  }
}

static inline void unpack(const IQ2_S::Block& block, float* out) {
  unpack_groups<IQ2_S>(block, out);
}

}  // namespace kt::quant
