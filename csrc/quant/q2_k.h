// Q2_K: blocks of 256 values in 16 groups of 16,
// value = (d * s) * q - (dmin * t) with q in 0..3 and a 4-bit s and t per group.
//
//   bytes 0-15   one byte per group: s in the low half, t in the high half
//   bytes 16-79  two bits per value: value 128 h + 32 p + j stands in byte 32 h + j at bit 2 p
//   bytes 80-81  d, binary16      bytes 82-83  dmin, binary16
//
// 84 bytes per 256 values, 2.625 bits per weight.
#pragma once

#include "quant/integer_view.h"

namespace kt::quant {

struct Q2_K {
  static constexpr char kName[] = "q2_k";
  static constexpr int kGgufId = 10;
  static constexpr int kValues = 256;
  static constexpr int kGroup = 16;
  static constexpr int kOffset = 0;
  static constexpr int kMaxU = 3;
  static constexpr bool kHasMin = true;
  struct Block {
    uint8_t scales[16];
    uint8_t qs[64];
    uint16_t d;
    uint16_t dmin;
  };
};
static_assert(sizeof(Q2_K::Block) == 84);

/// R16: d and dmin; scales; bits.
[[gnu::always_inline]] static inline constexpr int r16_place(Q2_K, int w) { return w == 20 ? 0 : w + 1; }

static inline void unpack_ints(const Q2_K::Block& block, uint8_t* u, float* scale, float* min) {
  for (int h = 0; h < 2; ++h)
    for (int p = 0; p < 4; ++p)
      for (int j = 0; j < 32; ++j) u[128 * h + 32 * p + j] = (block.qs[32 * h + j] >> (2 * p)) & 3;
  const float d = half_to_float(block.d);
  const float dmin = half_to_float(block.dmin);
  for (int g = 0; g < 16; ++g) {
    scale[g] = d * (float)(block.scales[g] & 15);
    min[g] = -(dmin * (float)(block.scales[g] >> 4));
  }
}

static inline void unpack(const Q2_K::Block& block, float* out) { unpack_groups<Q2_K>(block, out); }

}  // namespace kt::quant
