// Matrix products on R16 for few tokens: the weights are read once, and reading them is what takes
// the time.
#pragma once

#include "cpu/kernels/gemm_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

constexpr int kGemvTokens = 8;  // beyond, a tile in L1 pays

/// num_tokens <= kGemvTokens.
template <class Q>
static void gemv(const MatmulTask& task) {
  gemm<Q>(task);
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
