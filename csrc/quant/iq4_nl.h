// IQ4_NL: blocks of 32 values, value = d * level[q] with q in 0..15 and sixteen uneven levels.
//
//   bytes 0-1   d, binary16
//   bytes 2-17  nibbles: the low half of byte j is value j, the high half value j + 16
//
// 18 bytes per 32 values, 4.5 bits per weight.
#pragma once

#include "quant/integer_view.h"

namespace kt::quant {

/// The levels of IQ4_NL and IQ4_XS, plus 127 so that they count from 0.
static constexpr uint8_t kIq4Levels[16] = {0,   23,  44,  62,  78,  92,  105, 117,
                                           128, 140, 152, 165, 180, 196, 216, 240};

struct IQ4_NL {
  static constexpr char kName[] = "iq4_nl";
  static constexpr int kGgufId = 20;
  static constexpr int kValues = 32;
  static constexpr int kGroup = 32;
  static constexpr int kOffset = 127;
  static constexpr int kMaxU = 240;
  static constexpr bool kHasMin = false;
  struct Block {
    uint16_t d;
    uint8_t qs[16];
  };
};
static_assert(sizeof(IQ4_NL::Block) == 18);

static inline void unpack_ints(const IQ4_NL::Block& block, uint8_t* u, float* scale, float*) {
  for (int j = 0; j < 16; ++j) {
    u[j] = kIq4Levels[block.qs[j] & 15];
    u[j + 16] = kIq4Levels[block.qs[j] >> 4];
  }
  *scale = half_to_float(block.d);
}

static inline void unpack(const IQ4_NL::Block& block, float* out) {
  unpack_groups<IQ4_NL>(block, out);
}

}  // namespace kt::quant
