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

KT_INLINE void find_zero_range(const void* const* rows, int count, int64_t at, ZeroRange& range) {
  __m128i least = _mm_set1_epi16(-1), most = _mm_setzero_si128();
  for (int t = 0; t < count; ++t) {
    const DigitBlock* x = (const DigitBlock*)((const uint8_t*)rows[t] + at);
    const __m128i zero = _mm_loadu_si128((const __m128i*)x->zero_at);
    least = _mm_min_epu16(least, zero);
    most = _mm_max_epu16(most, zero);
  }
  uint16_t low[8], high[8];
  _mm_storeu_si128((__m128i*)low, _mm_srli_epi16(least, 6));
  _mm_storeu_si128((__m128i*)high, _mm_srli_epi16(most, 6));
  range.count = 1;
  for (int b = 0; b < 8; ++b)
    if (high[b] - low[b] >= range.count) range.count = high[b] - low[b] + 1;
  const int last = kZeroPoints - range.count;
  for (int b = 0; b < 8; ++b) range.first[b] = low[b] < last ? low[b] : last;
}

#if defined(KT_ISA_AVX512)
KT_INLINE I sub_bytes(I a, I b) { return {_mm512_sub_epi8(a.v, b.v)}; }
// sum, and per lane its four signed bytes.
KT_INLINE I add_word_sums(I sum, I a) {
  return {_mm512_dpbusd_epi32(sum.v, _mm512_set1_epi8(1), a.v)};
}
#else
KT_INLINE I sub_bytes(I x, I y) { return {_mm256_sub_epi8(x.a, y.a), _mm256_sub_epi8(x.b, y.b)}; }
KT_INLINE __m256i sum_bytes(__m256i x) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), x), _mm256_set1_epi16(1));
}
KT_INLINE I add_word_sums(I sum, I x) { return add(sum, {sum_bytes(x.a), sum_bytes(x.b)}); }
#endif

/// Makes a slab's words signed and fills the rows of the table that the tokens use.
template <int V, bool kMin>
KT_INLINE void prepare_digits(SlabRows<V, kMin>& w, int row_group, int groups, int offset,
                              const ZeroRange& range, ZeroTable& table) {
  const I off = set_i((int32_t)(0x01010101u * (uint32_t)offset));
  for (int g = 0; g < groups; ++g) {
    I even = set_i(0), odd = set_i(0);
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) {
      I word = load_i(w.u[g * V + j]);
      if (offset != 0) {
        word = sub_bytes(word, off);
        store_i(w.u[g * V + j], word);
      }
      (j % 2 == 0 ? even : odd) = add_word_sums(j % 2 == 0 ? even : odd, word);
    }
    const int first = range.first[V == 8 ? g : g / 2];
    const I step = mul(add(even, odd), set_i(-16));
    I start = mul(step, set_i(first));
    int32_t(*row)[16] = table.rows[g][row_group] + first;
    for (int n = 0; n < range.count; ++n, start = add(start, step)) store_i(row[n], start);
  }
}

/// The zero points of a pass. Their ranges are found once for all row groups, because each lies in
/// a cache line of its own; what is beyond the last (more than 32768 columns) is taken to use all
/// there are. The table is that of the slab under way.
struct PassZeros {
  static constexpr int kRanges = 128;
  ZeroTable table;
  ZeroRange ranges[kRanges];
};

KT_INLINE void find_zero_ranges(int64_t columns, const GemmPass& pass, PassZeros& zeros) {
  for (int i = 0; i < PassZeros::kRanges && i * kSlabColumns < columns; ++i)
    find_zero_range(pass.rows, pass.count, act_offset<false>(i * kSlabColumns), zeros.ranges[i]);
}

/// prepare_digits of all rows of the slab that begins at `column`.
template <int V, bool kMin>
KT_INLINE void prepare_slab(SlabRows<V, kMin>* w, int row_groups, int groups, int offset,
                            int64_t column, PassZeros& zeros) {
  constexpr ZeroRange kAll = {{}, kZeroPoints};
  const int64_t i = column / kSlabColumns;
  const ZeroRange& range = i < PassZeros::kRanges ? zeros.ranges[i] : kAll;
  for (int r = 0; r < row_groups; ++r)
    prepare_digits<V, kMin>(w[r], r, groups, offset, range, zeros.table);
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
