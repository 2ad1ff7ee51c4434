// F32, F16, BF16: plain floats, one value per block. They have no integer view (kGroup = 0):
// kernels widen them to float and multiply with float activations.
#pragma once

#include "base/half.h"

namespace kt::quant {

struct F32 {
  static constexpr char kName[] = "f32";
  static constexpr int kGgufId = 0;
  static constexpr int kValues = 1;
  static constexpr int kGroup = 0;
  static constexpr int kOffset = 0;
  static constexpr bool kHasMin = false;
  struct Block {
    float value;
  };
};
static_assert(sizeof(F32::Block) == 4);

struct F16 {
  static constexpr char kName[] = "f16";
  static constexpr int kGgufId = 1;
  static constexpr int kValues = 1;
  static constexpr int kGroup = 0;
  static constexpr int kOffset = 0;
  static constexpr bool kHasMin = false;
  struct Block {
    uint16_t bits;
  };
};
static_assert(sizeof(F16::Block) == 2);

struct BF16 {
  static constexpr char kName[] = "bf16";
  static constexpr int kGgufId = 30;
  static constexpr int kValues = 1;
  static constexpr int kGroup = 0;
  static constexpr int kOffset = 0;
  static constexpr bool kHasMin = false;
  struct Block {
    uint16_t bits;
  };
};
static_assert(sizeof(BF16::Block) == 2);

static inline void unpack(const F32::Block& block, float* out) { *out = block.value; }
static inline void unpack(const F16::Block& block, float* out) { *out = half_to_float(block.bits); }
static inline void unpack(const BF16::Block& block, float* out) {
  *out = bf16_to_float(block.bits);
}

}  // namespace kt::quant
