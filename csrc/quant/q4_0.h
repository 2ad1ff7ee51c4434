// Q4_0: blocks of 32 values, value = d * (q - 8) with q in 0..15.
//
//   bytes 0-1   d, binary16
//   bytes 2-17  nibbles: the low half of byte j is value j, the high half value j + 16
//
// 18 bytes per 32 values, 4.5 bits per weight.
#pragma once

#include "quant/integer_view.h"

namespace kt::quant {

struct Q4_0 {
  static constexpr char kName[] = "q4_0";
  static constexpr int kGgufId = 2;
  static constexpr int kValues = 32;
  static constexpr int kGroup = 32;
  static constexpr int kOffset = 8;
  static constexpr int kMaxU = 15;
  static constexpr bool kHasMin = false;
  struct Block {
    uint16_t d;
    uint8_t qs[16];
  };
};
static_assert(sizeof(Q4_0::Block) == 18);

static inline void unpack_ints(const Q4_0::Block& block, uint8_t* u, float* scale, float*) {
  for (int j = 0; j < 16; ++j) {
    u[j] = block.qs[j] & 15;
    u[j + 16] = block.qs[j] >> 4;
  }
  *scale = half_to_float(block.d);
}

static inline void unpack(const Q4_0::Block& block, float* out) { unpack_groups<Q4_0>(block, out); }

}  // namespace kt::quant
