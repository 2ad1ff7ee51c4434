// Q4_K: blocks of 256 values in 8 groups of 32,
// value = (d * s) * q - (dmin * t) with q in 0..15 and a 6-bit s and t per group.
//
//   bytes 0-1     d, binary16     bytes 2-3  dmin, binary16
//   bytes 4-15    s and t, packed as k_scales.h says
//   bytes 16-143  nibbles: value 64 c + j (j < 32) is the low half of byte 32 c + j, value
//                 64 c + 32 + j the high half
//
// 144 bytes per 256 values, 4.5 bits per weight.
#pragma once

#include "quant/integer_view.h"
#include "quant/k_scales.h"

namespace kt::quant {

struct Q4_K {
  static constexpr char kName[] = "q4_k";
  static constexpr int kGgufId = 12;
  static constexpr int kValues = 256;
  static constexpr int kGroup = 32;
  static constexpr int kOffset = 0;
  static constexpr int kMaxU = 15;
  static constexpr bool kHasMin = true;
  struct Block {
    uint16_t d;
    uint16_t dmin;
    uint8_t scales[12];
    uint8_t qs[128];
  };
};
static_assert(sizeof(Q4_K::Block) == 144);

static inline void unpack_ints(const Q4_K::Block& block, uint8_t* u, float* scale, float* min) {
  for (int c = 0; c < 4; ++c) {
    for (int j = 0; j < 32; ++j) {
      u[64 * c + j] = block.qs[32 * c + j] & 15;
      u[64 * c + 32 + j] = block.qs[32 * c + j] >> 4;
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

static inline void unpack(const Q4_K::Block& block, float* out) { unpack_groups<Q4_K>(block, out); }

}  // namespace kt::quant
