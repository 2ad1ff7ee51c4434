// Q8_0: blocks of 32 values, value = d * q with q in -128..127.
//
//   bytes 0-1  d, binary16        bytes 2-33  q, signed bytes in order
//
// 34 bytes per 32 values, 8.5 bits per weight.
#pragma once

#include "quant/integer_view.h"

namespace kt::quant {

struct Q8_0 {
  static constexpr char kName[] = "q8_0";
  static constexpr int kGgufId = 8;
  static constexpr int kValues = 32;
  static constexpr int kGroup = 32;
  static constexpr int kOffset = 128;
  static constexpr int kMaxU = 255;
  static constexpr bool kHasMin = false;
  struct Block {
    uint16_t d;
    int8_t qs[32];
  };
};
static_assert(sizeof(Q8_0::Block) == 34);

static inline void unpack_ints(const Q8_0::Block& block, uint8_t* u, float* scale, float*) {
  for (int j = 0; j < 32; ++j) u[j] = (uint8_t)(block.qs[j] + 128);
  *scale = half_to_float(block.d);
}

static inline void unpack(const Q8_0::Block& block, float* out) { unpack_groups<Q8_0>(block, out); }

}  // namespace kt::quant
