// TQ2_0: blocks of 256 values, value = d * (q - 1) with q in 0..3 (encoders write 0..2).
//
//   bytes 0-63   two bits per value: value 128 h + 32 p + j stands in byte 32 h + j at bit 2 p
//   bytes 64-65  d, binary16
//
// 66 bytes per 256 values, 2.0625 bits per weight.
#pragma once

#include "quant/integer_view.h"

namespace kt::quant {

struct TQ2_0 {
  static constexpr char kName[] = "tq2_0";
  static constexpr int kGgufId = 35;
  static constexpr int kValues = 256;
  static constexpr int kGroup = 32;
  static constexpr int kOffset = 1;
  static constexpr int kMaxU = 3;
  static constexpr bool kHasMin = false;
  static constexpr bool kHeadAtEnd = true;
  struct Block {
    uint8_t qs[64];
    uint16_t d;
  };
};
static_assert(sizeof(TQ2_0::Block) == 66);

static inline void unpack_ints(const TQ2_0::Block& block, uint8_t* u, float* scale, float*) {
  for (int h = 0; h < 2; ++h)
    for (int p = 0; p < 4; ++p)
      for (int j = 0; j < 32; ++j) u[128 * h + 32 * p + j] = (block.qs[32 * h + j] >> (2 * p)) & 3;
  for (int g = 0; g < 8; ++g) scale[g] = half_to_float(block.d);
}

static inline void unpack(const TQ2_0::Block& block, float* out) {
  unpack_groups<TQ2_0>(block, out);
}

}  // namespace kt::quant
