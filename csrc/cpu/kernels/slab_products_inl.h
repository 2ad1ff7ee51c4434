// A slab times all tokens of a pass, by vectors: the instruction set's micro-kernels, a few tokens at a
// time.
#pragma once

#include "cpu/kernels/gemm_pass_inl.h"
#if defined(KT_ISA_AVX512)
#include "cpu/kernels/micro_avx512_inl.h"
#elif defined(KT_ISA_AVX2)
#include "cpu/kernels/micro_avx2_inl.h"
#else
#include "cpu/kernels/micro_scalar_inl.h"
#endif

namespace kt::cpu::KT_ISA {
namespace {

#if defined(KT_ISA_AVX512) || defined(KT_ISA_AVX2)

// Calls run<count>(), 1 <= count <= kMost.
template <int kMost, class Run>
KT_INLINE void with_count(int count, Run run) {
  if constexpr (kMost > 1) {
    if (count < kMost) return with_count<kMost - 1>(count, run);
  }
  run.template operator()<kMost>();
}

template <int V, bool kMin, int kChunk, bool kExactRow>
struct SlabProducts {
  static constexpr int kMaxTokens = kExactRow ? kExactTokens : kDigitTokens<kChunk>;
  static constexpr int kMostAtEnd = kExactRow ? kMaxTokens - 1 : kDigitTokensAtEnd<kChunk>;
  PassZeros zeros;  // of digits

  KT_INLINE void prepare(SlabProducts& self, int64_t columns, const GemmPass& pass) {
    if constexpr (!kExactRow) find_zero_ranges(columns, pass.count, pass.rows, self.zeros);
  }

  KT_INLINE void finish(SlabProducts&) {}

  // As many blocks of kMaxTokens as there are, then what is left, with the last of these if the
  // registers hold it: few tokens by themselves do not fill the multiplier.
  struct Blocks {
    int whole, rest;
  };
  static constexpr Blocks blocks_of(int count) {
    const int whole = count / kMaxTokens, rest = count % kMaxTokens;
    if (rest == 0 || whole == 0 || rest + kMaxTokens > kMostAtEnd) return {whole, rest};
    return {whole - 1, rest + kMaxTokens};
  }
  static constexpr int steps(int count) {
    return blocks_of(count).whole + (blocks_of(count).rest != 0);
  }

  KT_INLINE void run(SlabProducts& self, const SlabRows<V, kMin>* w, int row_groups, int groups,
                     int64_t column, const GemmPass& pass, Prefetcher& next) {
    const int64_t at = act_offset<kExactRow>(column);
    if constexpr (!kExactRow) prepare_slab<V, kMin>(w, row_groups, groups, column, self.zeros);
    const auto [blocks, rest] = blocks_of(pass.count);
    const int done = blocks * kMaxTokens;
    if (blocks != 0)
      run_blocks<kMaxTokens>(self, w, row_groups, groups, pass.rows, blocks, at, pass.sums, next);
    if (rest != 0) {
      with_count<kMostAtEnd>(rest, [&]<int T>() {
        run_blocks<T>(self, w, row_groups, groups, pass.rows + done, 1, at,
                      pass.sums + done * kSumsStride, next);
      });
    }
  }

 private:
  template <int T>
  KT_INLINE void run_blocks(SlabProducts& self, const SlabRows<V, kMin>* w, int row_groups,
                            int groups, const void* const* rows, int blocks, int64_t at,
                            float* sums, Prefetcher& next) {
    if constexpr (kExactRow) {
      const auto kernel =
          row_groups == 2 ? &exact_kernel<T, 2, V, kMin> : &exact_kernel<T, 1, V, kMin>;
      kernel(w, groups, rows, blocks, at, sums, next);
    } else {
      const auto kernel = row_groups == 2 ? &digit_kernel<T, 2, V, kMin, kChunk>
                                          : &digit_kernel<T, 1, V, kMin, kChunk>;
      kernel(w, self.zeros.table, groups, rows, blocks, at, sums, next);
    }
  }
};

#else

template <int V, bool kMin, int, bool kExactRow>
struct SlabProducts {
  alignas(64) float parts[kTokensPerPass][16];

  KT_INLINE void prepare(SlabProducts&, int64_t, const GemmPass&) {}

  KT_INLINE void finish(SlabProducts&) {}

  static constexpr int steps(int count) { return count == 0 ? 0 : kSlabRowGroups; }

  KT_INLINE void run(SlabProducts& self, const SlabRows<V, kMin>* w, int row_groups, int groups,
                     int64_t column, const GemmPass& pass, Prefetcher& next) {
    const int64_t at = act_offset<kExactRow>(column);
    for (int r = 0; r < row_groups; ++r) {
      Prefetcher::step(next);
      float* sums = pass.sums + 16 * r;
      if constexpr (kExactRow)
        exact_rows<V, kMin>(w[r], groups, pass.rows, pass.count, at, sums);
      else
        digit_rows<V, kMin>(w[r], groups, pass.rows, pass.count, at, self.parts, sums);
    }
  }
};

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
