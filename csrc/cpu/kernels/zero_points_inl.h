// What a digit's zero point takes off a product, for instruction sets that multiply unsigned
// digits: 16 n sum(w), from a table per slab with a row for each n that some token has.
#pragma once

#include "cpu/kernels/gemm_pass_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

constexpr int kZeroPoints = 16;

/// Room for every zero point's start of every accumulator. Row n of a table is -16 n sum(w).
struct ZeroTable {
  alignas(64) int32_t rows[kSlabColumns / 16][kSlabRowGroups][kZeroPoints][16];
};

/// The zero points of some tokens: `count` of them from first[b] on hold those per 32 columns of a
/// slab. As many for all b, so that a loop over them is predicted.
struct ZeroRange {
  int32_t first[8], count;
};

// low, high: the least and the largest zero point per 32 columns.
KT_INLINE void make_zero_range(const uint8_t* low, const uint8_t* high, ZeroRange& range) {
  range.count = 1;
  for (int b = 0; b < 8; ++b)
    if (high[b] - low[b] >= range.count) range.count = high[b] - low[b] + 1;
  const int last = kZeroPoints - range.count;
  for (int b = 0; b < 8; ++b) range.first[b] = low[b] < last ? low[b] : last;
}

#if defined(KT_ISA_AVX512)
// sum, and per lane its four signed bytes.
KT_INLINE I add_word_sums(I sum, I a) {
  return {_mm512_dpbusd_epi32(sum.v, _mm512_set1_epi8(1), a.v)};
}
#else
KT_INLINE __m256i sum_bytes(__m256i x) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), x), _mm256_set1_epi16(1));
}
KT_INLINE I add_word_sums(I sum, I x) { return add(sum, {sum_bytes(x.a), sum_bytes(x.b)}); }
#endif

/// Fills the rows of the table that the tokens use.
template <int V, bool kMin>
KT_INLINE void prepare_digits(const SlabRows<V, kMin>& slab, int row_group, int groups,
                              const ZeroRange& range, ZeroTable& table) {
  for (int g = 0; g < groups; ++g) {
    I even = set_i(0), odd = set_i(0);
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) {
      I& sum = j % 2 == 0 ? even : odd;
      sum = add_word_sums(sum, load_i(slab.w[g * V + j]));
    }
    const int first = range.first[V == 8 ? g : g / 2];
    const I step = mul(add(even, odd), set_i(-16));
    I start = mul(step, set_i(first));
    int32_t(*row)[16] = table.rows[g][row_group] + first;
    for (int n = 0; n < range.count; ++n, start = add(start, step)) store_i(row[n], start);
  }
}

/// The zero points of a pass, found once for all row groups; what is beyond the last (more than
/// 32768 columns) is taken to use all there are. The table is that of the slab under way.
struct PassZeros {
  static constexpr int kRanges = 128;
  ZeroTable table;
  ZeroRange ranges[kRanges];
};

KT_INLINE void find_zero_ranges(int64_t columns, int count, const void* const* rows,
                                PassZeros& zeros) {
  constexpr int kSlabs = 4;  // whose zero points one vector holds
  const int slabs = (int)((columns + kSlabColumns - 1) / kSlabColumns);
  for (int first = 0; first < slabs && first < PassZeros::kRanges; first += kSlabs) {
    __m256i least = _mm256_set1_epi8(-1), most = _mm256_setzero_si256();
    for (int t = 0; t < count; ++t) {
      const uint8_t* zero = digit_zeros((const uint8_t*)rows[t], columns) + 8 * first;
      const __m256i here = _mm256_loadu_si256((const __m256i*)zero);
      least = _mm256_min_epu8(least, here);
      most = _mm256_max_epu8(most, here);
    }
    uint8_t low[8 * kSlabs], high[8 * kSlabs];
    _mm256_storeu_si256((__m256i*)low, least);
    _mm256_storeu_si256((__m256i*)high, most);
    for (int i = 0; i < kSlabs && first + i < slabs; ++i)
      make_zero_range(low + 8 * i, high + 8 * i, zeros.ranges[first + i]);
  }
}

/// prepare_digits of all rows of the slab that begins at `column`.
template <int V, bool kMin>
KT_INLINE void prepare_slab(const SlabRows<V, kMin>* slab, int row_groups, int groups,
                            int64_t column, PassZeros& zeros) {
  constexpr ZeroRange kAll = {{}, kZeroPoints};
  const int64_t i = column / kSlabColumns;
  const ZeroRange& range = i < PassZeros::kRanges ? zeros.ranges[i] : kAll;
  for (int r = 0; r < row_groups; ++r)
    prepare_digits<V, kMin>(slab[r], r, groups, range, zeros.table);
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
