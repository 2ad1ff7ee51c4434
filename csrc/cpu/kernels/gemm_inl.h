// Matrix products on R16 for many tokens. Two row groups at a time, 256 columns at a time: the weights
// are unpacked to a slab in L1 once and every token's activations meet it there, a few tokens at a
// time, while the next slab is fetched. Totals of the tokens, 128 bytes each, lie in L2 at worst.
#pragma once

#include "cpu/kernels/gemm_float_inl.h"
#include "cpu/kernels/slab_inl.h"
#include "cpu/kernels/store_rows_inl.h"
#if defined(KT_ISA_AVX512)
#include "cpu/kernels/micro_avx512_inl.h"
#elif defined(KT_ISA_AVX2)
#include "cpu/kernels/micro_avx2_inl.h"
#else
#include "cpu/kernels/micro_scalar_inl.h"
#endif

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

#if defined(KT_ISA_AVX512) || defined(KT_ISA_AVX2)

// Calls run<count>(), 1 <= count <= kMost.
template <int kMost, class Run>
KT_INLINE void with_count(int count, Run run) {
  if constexpr (kMost > 1) {
    if (count < kMost) return with_count<kMost - 1>(count, run);
  }
  run.template operator()<kMost>();
}

template <class Q, bool kExactRow>
struct SlabProducts {
  static constexpr int V = Q::kGroup / 4;
  static constexpr bool kMin = Q::kHasMin;
  static constexpr int kChunk = chunk_words<Q>();
  static constexpr int kMaxTokens = kExactRow ? kExactTokens : kDigitTokens<kChunk>;
  // Zero points are looked up once for all row groups: each lies in a cache line of its own. What
  // lies beyond (more than 32768 columns) is taken to use all there are.
  static constexpr int kRanges = 128;
  ZeroTable zeros;
  ZeroRange ranges[kExactRow ? 1 : kRanges];

  KT_INLINE void prepare(SlabProducts& self, int64_t columns, const GemmPass& pass) {
    if constexpr (!kExactRow) {
      for (int i = 0; i < kRanges && i * kSlabColumns < columns; ++i)
        find_zero_range(pass.rows, pass.count, act_offset<false>(i * kSlabColumns), self.ranges[i]);
    }
  }

  static constexpr int steps(int count) { return (count + kMaxTokens - 1) / kMaxTokens; }

  KT_INLINE void run(SlabProducts& self, SlabRows<V, kMin>* w, int row_groups, int groups,
                     int64_t column, const GemmPass& pass, Prefetcher& next) {
    const int64_t at = act_offset<kExactRow>(column);
    if constexpr (!kExactRow) {
      constexpr ZeroRange kAll = {{}, {960, 960, 960, 960, 960, 960, 960, 960}};
      const int64_t i = column / kSlabColumns;
      const ZeroRange& range = i < kRanges ? self.ranges[i] : kAll;
      for (int r = 0; r < row_groups; ++r)
        prepare_digits<V, kMin>(w[r], r, groups, Q::kOffset, range, self.zeros);
    }
    // As many blocks of kMaxTokens as there are, then what is left.
    const int blocks = pass.count / kMaxTokens, rest = pass.count % kMaxTokens;
    const int done = blocks * kMaxTokens;
    if (blocks != 0)
      run_blocks<kMaxTokens>(self, w, row_groups, groups, pass.rows, blocks, at, pass.sums, next);
    if (rest != 0) {
      with_count<kMaxTokens - 1>(rest, [&]<int T>() {
        run_blocks<T>(self, w, row_groups, groups, pass.rows + done, 1, at,
                      pass.sums + done * kSumsStride, next);
      });
    }
  }

 private:
  template <int T>
  KT_INLINE void run_blocks(SlabProducts& self, SlabRows<V, kMin>* w, int row_groups, int groups,
                            const void* const* rows, int blocks, int64_t at, float* sums,
                            Prefetcher& next) {
    if constexpr (kExactRow) {
      const auto kernel =
          row_groups == 2 ? &exact_kernel<T, 2, V, kMin> : &exact_kernel<T, 1, V, kMin>;
      kernel(w, Q::kOffset, groups, rows, blocks, at, sums, next);
    } else {
      const auto kernel = row_groups == 2 ? &digit_kernel<T, 2, V, kMin, kChunk>
                                          : &digit_kernel<T, 1, V, kMin, kChunk>;
      kernel(w, self.zeros, groups, rows, blocks, at, sums, next);
    }
  }
};

#else

template <class Q, bool kExactRow>
struct SlabProducts {
  static constexpr int V = Q::kGroup / 4;
  alignas(64) float parts[kTokensPerPass][16];

  KT_INLINE void prepare(SlabProducts&, int64_t, const GemmPass&) {}

  static constexpr int steps(int) { return kSlabRowGroups; }

  KT_INLINE void run(SlabProducts& self, SlabRows<V, Q::kHasMin>* w, int row_groups, int groups,
                     int64_t column, const GemmPass& pass, Prefetcher& next) {
    const int64_t at = act_offset<kExactRow>(column);
    for (int r = 0; r < row_groups; ++r) {
      Prefetcher::step(next);
      float* sums = pass.sums + 16 * r;
      if constexpr (kExactRow)
        exact_rows<V, Q::kHasMin>(w[r], Q::kOffset, groups, pass.rows, pass.count, at, sums);
      else
        digit_rows<V, Q::kHasMin>(w[r], Q::kOffset, groups, pass.rows, pass.count, at, self.parts,
                                  sums);
    }
  }
};

#endif

template <class Q, bool kExactRow>
static void gemm_ints(const MatmulTask& task, int first, int count) {
  using Products = SlabProducts<Q, kExactRow>;
  constexpr size_t kRecord = quant::R16<Q>::kRecordBytes;
  constexpr size_t kSlabBytes = kSlabColumns / Q::kValues * kRecord;
  SlabRows<Q::kGroup / 4, Q::kHasMin> slab[kSlabRowGroups];
  Products products;
  alignas(64) float sums[kTokensPerPass][kSumsStride];
  const GemmPass pass{count, task.x + first, sums[0]};
  Products::prepare(products, task.k, pass);
  for (int64_t group = task.group_begin; group < task.group_end; group += kSlabRowGroups) {
    const int64_t left = task.group_end - group;
    const int row_groups = left < kSlabRowGroups ? (int)left : kSlabRowGroups;
    memset(sums, 0, (size_t)count * sizeof sums[0]);
    for (int64_t column = 0; column < task.k; column += kSlabColumns) {
      const int columns = task.k - column < kSlabColumns ? (int)(task.k - column) : kSlabColumns;
      for (int r = 0; r < row_groups; ++r)
        unpack_slab<Q>(record_at<Q>(task, group + r, column / Q::kValues), columns, slab[r]);
      // Behind the last columns of these rows come the first of the next.
      const bool is_last = column + columns >= task.k;
      const int64_t next = is_last ? group + kSlabRowGroups : group;
      const int64_t block = is_last ? 0 : (column + columns) / Q::kValues;
      Prefetcher prefetcher(record_at<Q>(task, next, block), record_at<Q>(task, next + 1, block),
                            kSlabBytes, Products::steps(count));
      Products::run(products, slab, row_groups, columns / Q::kGroup, column, pass, prefetcher);
    }
    for (int r = 0; r < row_groups; ++r)
      for (int t = 0; t < count; ++t)
        store_rows(task, group + r, first + t, load_f(sums[t] + 16 * r));
  }
}

/// Any number of tokens.
template <class Q>
static void gemm(const MatmulTask& task) {
  if (Q::kGroup == 0 || task.rounding == Rounding::kFloat) return gemm_floats<Q>(task);
  if constexpr (Q::kGroup != 0) {
    const int passes = (task.num_tokens + kTokensPerPass - 1) / kTokensPerPass;
    for (int i = 0; i < passes; ++i) {
      const int first = (int)((int64_t)task.num_tokens * i / passes);
      const int count = (int)((int64_t)task.num_tokens * (i + 1) / passes) - first;
      if (task.rounding == Rounding::kExact)
        gemm_ints<Q, true>(task, first, count);
      else
        gemm_ints<Q, false>(task, first, count);
    }
  }
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
