// MXFP4 (OCP Microscaling v1.0): blocks of 32 values, value = 2^(e - 127) * E2M1(q).
//
//   byte  0     e, a biased exponent; the scale of the doubled codes is 2^(e - 128), and so
//               subnormal for e < 2
//   bytes 1-16  nibbles: the low half of byte j is value j, the high half value j + 16
//
// 17 bytes per 32 values, 4.25 bits per weight.
#pragma once

#include "quant/fp4.h"
#include "quant/integer_view.h"

namespace kt::quant {

struct MXFP4 {
  static constexpr char kName[] = "mxfp4";
  static constexpr int kGgufId = 39;
  static constexpr int kValues = 32;
  static constexpr int kGroup = 32;
  static constexpr int kOffset = 12;
  static constexpr int kMaxU = 24;
  static constexpr bool kHasMin = false;
  struct Block {
    uint8_t e;
    uint8_t qs[16];
  };
};
static_assert(sizeof(MXFP4::Block) == 17);

/// 2^(e - 128), exact for every byte.
static inline float half_e8m0(uint8_t e) {
  return bits_to_float(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

static inline void unpack_ints(const MXFP4::Block& block, uint8_t* u, float* scale, float*) {
  for (int j = 0; j < 16; ++j) {
    u[j] = kFp4Levels[block.qs[j] & 15];
    u[j + 16] = kFp4Levels[block.qs[j] >> 4];
  }
  *scale = half_e8m0(block.e);
}

static inline void unpack(const MXFP4::Block& block, float* out) {
  unpack_groups<MXFP4>(block, out);
}

}  // namespace kt::quant
