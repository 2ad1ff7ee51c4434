// IQ4_XS: blocks of 256 values in 8 groups of 32,
// value = (d * (s - 32)) * level[q] with q in 0..15, the levels of IQ4_NL and a 6-bit s per group.
//
//   bytes 0-1    d, binary16
//   bytes 2-3    little-endian word: the high two bits of s of group g at bit 2 g
//   bytes 4-7    low four bits of s: group g in byte g / 2, half g % 2
//   bytes 8-135  nibbles, 16 bytes per group: the low half of byte j is its value j, the high half
//                its value j + 16
//
// 136 bytes per 256 values, 4.25 bits per weight.
#pragma once

#include "quant/integer_view.h"
#include "quant/iq4_nl.h"

namespace kt::quant {

struct IQ4_XS {
  static constexpr char kName[] = "iq4_xs";
  static constexpr int kGgufId = 23;
  static constexpr int kValues = 256;
  static constexpr int kGroup = 32;
  static constexpr int kOffset = 127;
  static constexpr int kMaxU = 240;
  static constexpr bool kHasMin = false;
  struct Block {
    uint16_t d;
    uint16_t scales_high;
    uint8_t scales_low[4];
    uint8_t qs[128];
  };
};
static_assert(sizeof(IQ4_XS::Block) == 136);

static inline void unpack_ints(const IQ4_XS::Block& block, uint8_t* u, float* scale, float*) {
  const float d = half_to_float(block.d);
  for (int g = 0; g < 8; ++g) {
    for (int j = 0; j < 16; ++j) {
      u[32 * g + j] = kIq4Levels[block.qs[16 * g + j] & 15];
      u[32 * g + 16 + j] = kIq4Levels[block.qs[16 * g + j] >> 4];
    }
    const int low = (block.scales_low[g / 2] >> (g % 2 * 4)) & 15;
    const int high = (block.scales_high >> (2 * g)) & 3;
    scale[g] = d * (float)((low | high << 4) - 32);
  }
}

static inline void unpack(const IQ4_XS::Block& block, float* out) {
  unpack_groups<IQ4_XS>(block, out);
}

}  // namespace kt::quant
