// Q4_1: blocks of 32 values, value = d * q + m with q in 0..15.
//
//   bytes 0-1  d, binary16        bytes 2-3  m, binary16
//   bytes 4-19 nibbles: the low half of byte j is value j, the high half value j + 16
//
// 20 bytes per 32 values, 5 bits per weight.
#pragma once

#include "quant/integer_view.h"

namespace kt::quant {

struct Q4_1 {
  static constexpr char kName[] = "q4_1";
  static constexpr int kGgufId = 3;
  static constexpr int kValues = 32;
  static constexpr int kGroup = 32;
  static constexpr int kOffset = 0;
  static constexpr int kMaxU = 15;
  static constexpr bool kHasMin = true;
  struct Block {
    uint16_t d;
    uint16_t m;
    uint8_t qs[16];
  };
};
static_assert(sizeof(Q4_1::Block) == 20);

static inline void unpack_ints(const Q4_1::Block& block, uint8_t* u, float* scale, float* min) {
  for (int j = 0; j < 16; ++j) {
    u[j] = block.qs[j] & 15;
    u[j + 16] = block.qs[j] >> 4;
  }
  *scale = half_to_float(block.d);
  *min = half_to_float(block.m);
}

static inline void unpack(const Q4_1::Block& block, float* out) { unpack_groups<Q4_1>(block, out); }

}  // namespace kt::quant
