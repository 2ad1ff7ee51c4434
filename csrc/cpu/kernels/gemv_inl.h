// Matrix products on R16 for few tokens, each with two int8 halves: every line of the weights is read
// once, in order of address, and reading is what takes the time.
//
//   group of 16 rows
//     record 0 ... record k / kValues - 1           one stream, metadata inside
//       chunk: a rolled loop over words; each step gives 1 to 4 vectors of 64 bytes
//         token 0..T-1: hi += bytes . x.hi, lo += bytes . x.lo       (a byte dot product each)
//       at the end of a chunk, per group of values and token: total += float((hi << 8) + lo) * scales
//
// What the memory system asks for (measured on Zen 4; a stream of its own per core brings 30 GB/s):
// no gaps, no second stream, and few load instructions with small strides, so inner loops stay rolled.
#pragma once

#include "cpu/kernels/gemm_inl.h"
#include "cpu/kernels/gemv_blocks_inl.h"
#include "cpu/kernels/gemv_k_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

constexpr int kGemvTokens = 8;  // beyond, a tile in L1 pays

#if defined(KT_ISA_AVX512)

// Whether a format has a kernel of its own here.
template <class Q>
concept HasRecord = requires(const uint8_t* record, const ActBlock* const* x, F* total) {
  gemv_record<1>(Q{}, record, x, total);
};

// Rows of one group for tokens first .. first + T - 1.
template <class Q, int T>
static void gemv_group(const MatmulTask& task, int64_t group, int first) {
  const int64_t blocks = task.k / Q::kValues;
  const uint8_t* record = task.weights + (size_t)(group * blocks) * quant::R16<Q>::kRecordBytes;
  const ActBlock* x[T];
  F total[T];
  KT_TOKENS {
    x[t] = (const ActBlock*)task.x[first + t];
    total[t] = zero_f();
  }
  for (int64_t b = 0; b < blocks; ++b) {
    gemv_record<T>(Q{}, record, x, total);
    KT_TOKENS x[t] += Q::kValues / 32;
    record += quant::R16<Q>::kRecordBytes;
  }
  KT_TOKENS store_rows(task, group, first + t, total[t]);
}

// Four accumulators of halves per token: with more than two tokens they leave the registers.
template <class Q>
constexpr int kMostTokens = 4;
template <>
constexpr int kMostTokens<quant::Q6_K> = 2;
template <>
constexpr int kMostTokens<quant::Q3_K> = 2;
template <>
constexpr int kMostTokens<quant::Q2_K> = 2;
template <>
constexpr int kMostTokens<quant::TQ2_0> = 2;

// Four tokens at a time, and then two and one: the group's weights come from memory for the first of
// them and from the cache for the others.
template <class Q>
static void gemv_halves(const MatmulTask& task) {
  for (int64_t group = task.group_begin; group < task.group_end; ++group) {
    int t = 0;
    if constexpr (kMostTokens<Q> >= 4)
      for (; t + 4 <= task.num_tokens; t += 4) gemv_group<Q, 4>(task, group, t);
    for (; t + 2 <= task.num_tokens; t += 2) gemv_group<Q, 2>(task, group, t);
    if (t < task.num_tokens) gemv_group<Q, 1>(task, group, t);
  }
}

#else

template <class Q>
concept HasRecord = false;
template <class Q>
static void gemv_halves(const MatmulTask&) {}

#endif

/// num_tokens <= kGemvTokens.
template <class Q>
static void gemv(const MatmulTask& task) {
  if constexpr (HasRecord<Q>) {
    if (task.rounding == Rounding::kExact) return gemv_halves<Q>(task);
  }
  gemm<Q>(task);
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
