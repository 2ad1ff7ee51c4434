// Q3_K: blocks of 256 values in 16 groups of 16,
// value = (d * (s - 32)) * (q - 4) with q in 0..7 and a 6-bit s per group.
//
//   bytes 0-31    third bits: bit i of byte j belongs to value 32 i + j
//   bytes 32-95   low two bits: value 128 h + 32 p + j stands in byte 32 h + j at bit 2 p
//   bytes 96-103  low four bits of s: group g in byte g % 8, half g / 8
//   bytes 104-107 high two bits of s: group g in byte g % 4 at bit 2 (g / 4)
//   bytes 108-109 d, binary16
//
// 110 bytes per 256 values, 3.4375 bits per weight.
#pragma once

#include "quant/integer_view.h"

namespace kt::quant {

struct Q3_K {
  static constexpr char kName[] = "q3_k";
  static constexpr int kGgufId = 11;
  static constexpr int kValues = 256;
  static constexpr int kGroup = 16;
  static constexpr int kOffset = 4;
  static constexpr int kMaxU = 7;
  static constexpr bool kHasMin = false;
  static constexpr bool kHeadAtEnd = true;
  struct Block {
    uint8_t hmask[32];
    uint8_t qs[64];
    uint8_t scales[12];
    uint16_t d;
  };
};
static_assert(sizeof(Q3_K::Block) == 110);

/// R16: scales; then, for each j, the third bits and the low bits of the first half; the second.
[[gnu::always_inline]] static inline constexpr int r16_place(Q3_K, int w) {
  if (w >= 24) return w - 24;
  if (w >= 16) return w + 3;
  return w < 8 ? 3 + 2 * w : 4 + 2 * (w - 8);
}

static inline void unpack_ints(const Q3_K::Block& block, uint8_t* u, float* scale, float*) {
  for (int i = 0; i < 8; ++i) {
    for (int j = 0; j < 32; ++j) {
      const int low = (block.qs[i / 4 * 32 + j] >> (i % 4 * 2)) & 3;
      const int high = (block.hmask[j] >> i) & 1;
      u[32 * i + j] = (uint8_t)(low | high << 2);
    }
  }
  const float d = half_to_float(block.d);
  for (int g = 0; g < 16; ++g) {
    const int low = (block.scales[g % 8] >> (g / 8 * 4)) & 15;
    const int high = (block.scales[8 + g % 4] >> (g / 4 * 2)) & 3;
    scale[g] = d * (float)((low | high << 4) - 32);
  }
}

static inline void unpack(const Q3_K::Block& block, float* out) { unpack_groups<Q3_K>(block, out); }

}  // namespace kt::quant
