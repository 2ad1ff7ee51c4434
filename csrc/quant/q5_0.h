// Q5_0: blocks of 32 values, value = d * (q - 16) with q in 0..31.
//
//   bytes 0-1   d, binary16
//   bytes 2-5   fifth bits: bit i of this little-endian word belongs to value i
//   bytes 6-21  low four bits: the low half of byte j is value j, the high half value j + 16
//
// 22 bytes per 32 values, 5.5 bits per weight.
#pragma once

#include "quant/integer_view.h"

namespace kt::quant {

struct Q5_0 {
  static constexpr char kName[] = "q5_0";
  static constexpr int kGgufId = 6;
  static constexpr int kValues = 32;
  static constexpr int kGroup = 32;
  static constexpr int kOffset = 16;
  static constexpr int kMaxU = 31;
  static constexpr bool kHasMin = false;
  struct Block {
    uint16_t d;
    uint8_t qh[4];
    uint8_t qs[16];
  };
};
static_assert(sizeof(Q5_0::Block) == 22);

static inline void unpack_ints(const Q5_0::Block& block, uint8_t* u, float* scale, float*) {
  for (int i = 0; i < 32; ++i) {
    const int low = (block.qs[i % 16] >> (i / 16 * 4)) & 15;
    const int high = (block.qh[i / 8] >> (i % 8)) & 1;
    u[i] = (uint8_t)(low | high << 4);
  }
  *scale = half_to_float(block.d);
}

static inline void unpack(const Q5_0::Block& block, float* out) { unpack_groups<Q5_0>(block, out); }

}  // namespace kt::quant
