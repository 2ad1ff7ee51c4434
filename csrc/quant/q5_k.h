// Q5_K: blocks of 256 values in 8 groups of 32,
// value = (d * s) * q - (dmin * t) with q in 0..31 and a 6-bit s and t per group.
//
//   bytes 0-1     d, binary16     bytes 2-3  dmin, binary16
//   bytes 4-15    s and t, packed as k_scales.h says
//   bytes 16-47   fifth bits: bit g of byte j belongs to value 32 g + j
//   bytes 48-175  low four bits: value 64 c + j (j < 32) is the low half of byte 32 c + j, value
//                 64 c + 32 + j the high half
//
// 176 bytes per 256 values, 5.5 bits per weight.
#pragma once

#include "quant/integer_view.h"
#include "quant/k_scales.h"

namespace kt::quant {

struct Q5_K {
  static constexpr char kName[] = "q5_k";
  static constexpr int kGgufId = 13;
  static constexpr int kValues = 256;
  static constexpr int kGroup = 32;
  static constexpr int kOffset = 0;
  static constexpr int kMaxU = 31;
  static constexpr bool kHasMin = true;
  struct Block {
    uint16_t d;
    uint16_t dmin;
    uint8_t scales[12];
    uint8_t qh[32];
    uint8_t qs[128];
  };
};
static_assert(sizeof(Q5_K::Block) == 176);

/// R16: the words of fifth bits stand before those of the first 64 values they belong to.
[[gnu::always_inline]] static inline constexpr int r16_place(Q5_K, int w) {
  if (w < 4 || w >= 20) return w;
  return w < 12 ? 4 + 2 * (w - 4) : 5 + 2 * (w - 12);
}

static inline void unpack_ints(const Q5_K::Block& block, uint8_t* u, float* scale, float* min) {
  for (int g = 0; g < 8; ++g) {
    for (int j = 0; j < 32; ++j) {
      const int low = (block.qs[g / 2 * 32 + j] >> (g % 2 * 4)) & 15;
      const int high = (block.qh[j] >> g) & 1;
      u[32 * g + j] = (uint8_t)(low | high << 4);
    }
  }
  const float d = half_to_float(block.d);
  const float dmin = half_to_float(block.dmin);
  uint8_t s[8], t[8];
  unpack_k_scales(block.scales, s, t);
  for (int g = 0; g < 8; ++g) {
    scale[g] = d * (float)s[g];
    min[g] = -(dmin * (float)t[g]);
  }
}

static inline void unpack(const Q5_K::Block& block, float* out) { unpack_groups<Q5_K>(block, out); }

}  // namespace kt::quant
