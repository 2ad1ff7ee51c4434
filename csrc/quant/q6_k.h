// Q6_K: blocks of 256 values in 16 groups of 16,
// value = (d * s) * (q - 32) with q in 0..63 and a signed 8-bit s per group.
//
// Value 128 h + 32 p + j (h < 2, p < 4, j < 32) has
//   bytes 0-127    its low four bits in byte 64 h + 32 (p % 2) + j, low half for p < 2
//   bytes 128-191  its high two bits in byte 32 h + j at bit 2 p
//   bytes 192-207  s, one signed byte per group
//   bytes 208-209  d, binary16
//
// 210 bytes per 256 values, 6.5625 bits per weight.
#pragma once

#include "quant/integer_view.h"

namespace kt::quant {

struct Q6_K {
  static constexpr char kName[] = "q6_k";
  static constexpr int kGgufId = 14;
  static constexpr int kValues = 256;
  static constexpr int kGroup = 16;
  static constexpr int kOffset = 32;
  static constexpr int kMaxU = 63;
  static constexpr bool kHasMin = false;
  static constexpr bool kHeadAtEnd = true;
  struct Block {
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    uint16_t d;
  };
};
static_assert(sizeof(Q6_K::Block) == 210);

/// R16: scales; then, for each h and j, the two words of low bits and the word of high bits.
[[gnu::always_inline]] static inline constexpr int r16_place(Q6_K, int w) {
  if (w >= 48) return w - 48;
  if (w >= 32) return 4 + 24 * ((w - 32) / 8) + 3 * (w % 8) + 2;
  return 4 + 24 * (w / 16) + 3 * (w % 8) + w / 8 % 2;
}

static inline void unpack_ints(const Q6_K::Block& block, uint8_t* u, float* scale, float*) {
  for (int h = 0; h < 2; ++h) {
    for (int p = 0; p < 4; ++p) {
      for (int j = 0; j < 32; ++j) {
        const int low = (block.ql[64 * h + 32 * (p % 2) + j] >> (p / 2 * 4)) & 15;
        const int high = (block.qh[32 * h + j] >> (2 * p)) & 3;
        u[128 * h + 32 * p + j] = (uint8_t)(low | high << 4);
      }
    }
  }
  const float d = half_to_float(block.d);
  for (int g = 0; g < 16; ++g) scale[g] = d * (float)block.scales[g];
}

static inline void unpack(const Q6_K::Block& block, float* out) { unpack_groups<Q6_K>(block, out); }

}  // namespace kt::quant
