// What the products of a slab with many tokens are given, whatever multiplies.
#pragma once

#include "cpu/kernels/activations_inl.h"
#include "cpu/kernels/slab_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

constexpr int kTokensPerPass = 512;  // 64 KiB of totals

struct GemmPass {
  int count;                // tokens
  const void* const* rows;  // their activations
  float* sums;              // [count][kSumsStride]
};

// Bytes into a row of activations where those of a column are.
template <bool kExactRow>
KT_INLINE int64_t act_offset(int64_t column) {
  return kExactRow ? column / 32 * (int64_t)sizeof(ActBlock)
                   : column / kDigitValues * (int64_t)sizeof(DigitBlock);
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
