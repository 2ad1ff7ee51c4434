// The inner products of the prompt GEMM on AVX2: one row group of a slab (two registers of eight
// int32 lanes) times T tokens. The same sums in the same order as micro_avx512_inl.h.
//
// Digits: vpmaddubsw multiplies an unsigned digit with a signed weight and adds pairs as int16. As
// long as |w| is small, the sums of some words fit 16 bits before one vpmaddwd widens them:
//     words * 2 * 255 * max|w| <= 32767     8 words for |w| <= 8, 4 for 16, 2 for 32
// T = 2: 4 sums of 16 bits, 4 of 32, two words, a broadcast: 12 of 16 registers; 4 loads meet 4
// products. Weights of eight bits have no such room: bytes are widened to 16 bits and multiplied by
// vpmaddwd, with T = 3 to share the widening. So are halves, which have 16 bits anyway. AVX-VNNI
// has vpdpbusd for all digits.
#pragma once

#include "cpu/kernels/activations_inl.h"
#include "cpu/kernels/prefetcher_inl.h"
#include "cpu/kernels/zero_points_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

// Words whose products with digits are summed in 16 bits; 0: none are.
constexpr int chunk_words(int group, int offset, int max_u) {
#if defined(KT_VNNI)
  return (void)group, (void)offset, (void)max_u, 0;
#endif
  const int most = max_u - offset > offset ? max_u - offset : offset;
  const int words = 32767 / (2 * 255 * most);
  return words >= 8 && group == 32 ? 8 : words >= 4 ? 4 : words >= 2 ? 2 : words;
}

constexpr int kExactTokens = 4;
template <int kChunk>
constexpr int kDigitTokens = kChunk == 0 ? 3 : 2;
template <int kChunk>
constexpr int kDigitTokensAtEnd = kDigitTokens<kChunk> - 1;

// Keeps a value in a register where the compiler would load it again for every use.
KT_INLINE I kept(I x) {
  asm("" : "+x"(x.a), "+x"(x.b));
  return x;
}

KT_INLINE __m256i broadcast_word(const void* p) {
  int32_t word;
  memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}

// Values 0 and 2, and 1 and 3, of each row's four as pairs of 16 bits.
struct Pairs {
  I even, odd;
};
KT_INLINE Pairs widen(const int8_t* p) {
  const I v = kept(load_i(p));
  return {{_mm256_srai_epi16(_mm256_slli_epi16(v.a, 8), 8),
           _mm256_srai_epi16(_mm256_slli_epi16(v.b, 8), 8)},
          {_mm256_srai_epi16(v.a, 8), _mm256_srai_epi16(v.b, 8)}};
}
KT_INLINE I add_products(I sum, I w, __m256i x) {
  return kept({dot_pairs(sum.a, w.a, x), dot_pairs(sum.b, w.b, x)});
}

// A word of weights, and its products with a digit of each of its values.
#if defined(KT_VNNI)
KT_INLINE I load_words(const int8_t* p) { return load_i(p); }
KT_INLINE I add_digit_products(I sum, I w, __m256i digits) {
  return {dot_bytes(sum.a, digits, w.a), dot_bytes(sum.b, digits, w.b)};
}
#else
KT_INLINE Pairs load_words(const int8_t* p) { return widen(p); }
KT_INLINE I add_digit_products(I sum, Pairs w, __m256i digits) {
  sum = add_products(sum, w.even, _mm256_and_si256(digits, _mm256_set1_epi16(255)));
  return add_products(sum, w.odd, _mm256_srli_epi16(digits, 8));
}
#endif

// acc[t] += the products of a group's words with its digits, which start `at` values into a block.
template <int T, int V, int kChunk>
KT_INLINE void add_digits(const int8_t (*words)[64], const DigitBlock* const* x, int at, I* acc) {
  if constexpr (kChunk == 0) {
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) {
      const auto w = load_words(words[j]);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t)
        acc[t] = add_digit_products(acc[t], w, broadcast_word(x[t]->digit + at + j * 4));
    }
  } else {
    const __m256i one = _mm256_set1_epi16(1);
#pragma GCC unroll 8
    for (int j = 0; j < V; j += kChunk) {
      I sum[T];
#pragma GCC unroll 8
      for (int c = 0; c < kChunk; ++c) {
        const I w = kept(load_i(words[j + c]));
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) {
          const __m256i d = broadcast_word(x[t]->digit + at + (j + c) * 4);
          const I product = {_mm256_maddubs_epi16(d, w.a), _mm256_maddubs_epi16(d, w.b)};
          sum[t] = c == 0 ? product
                          : kept(I{_mm256_add_epi16(sum[t].a, product.a),
                                   _mm256_add_epi16(sum[t].b, product.b)});
        }
      }
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) acc[t] = add_products(acc[t], sum[t], one);
    }
  }
}

// sums: [T][kSumsStride].
template <int T, int V, bool kMin, int kChunk>
KT_INLINE void digit_rows(const SlabRows<V, kMin>& w, const int32_t* zeros, int groups,
                          const void* const* rows, int64_t at, float* sums) {
  const DigitBlock* x[T];
  F part[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    x[t] = (const DigitBlock*)((const uint8_t*)rows[t] + at);
    part[t] = zero_f();
  }
  for (int g = 0; g < groups; ++g) {
    const int b = V == 8 ? g : g / 2;
    I acc[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) acc[t] = load_i((const uint8_t*)zeros + x[t]->zero_at[b]);
    zeros += sizeof(ZeroTable::rows[0]) / sizeof *zeros;
    add_digits<T, V, kChunk>(w.w + g * V, x, g * V * 4, acc);
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      part[t] = fma(to_float(shl(acc[t], x[t]->shift[b])), load_f(w.scale[g]), part[t]);
      if constexpr (kMin)
        part[t] = fma(set_f(V == 8 ? x[t]->sum[b] : x[t]->half_sum[g]), load_f(w.min[g]), part[t]);
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    const int column = x[t]->outlier_at;
    const I byte = sar(shl(load_i(w.w[column / 4]), 24 - 8 * (column % 4)), 24);
    const F weight = mul(to_float(byte), load_f(w.scale[column / (V * 4)]));
    float* total = sums + t * kSumsStride;
    const F dots = fma(part[t], set_f(x[t]->unit), load_f(total));
    store_f(total, fma(weight, set_f(x[t]->outlier), dots));
  }
}

template <int T, int V, bool kMin>
KT_INLINE void exact_rows(const SlabRows<V, kMin>& w, int groups, const void* const* rows,
                          int64_t at, float* sums) {
  const ActBlock* x[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) x[t] = (const ActBlock*)((const uint8_t*)rows[t] + at);
  for (int g = 0; g < groups; ++g) {
    const int b = V == 8 ? g : g / 2, first = V == 8 ? 0 : g % 2 * 16;
    I acc[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) acc[t] = set_i(0);
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) {
      const Pairs words = widen(w.w[g * V + j]);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        const int16_t* q = x[t][b].q + first + j * 4;
        acc[t] = add_products(acc[t], words.even, broadcast_word(q));
        acc[t] = add_products(acc[t], words.odd, broadcast_word(q + 2));
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      const float step = x[t][b].scale;
      const int32_t sum = V == 8 ? x[t][b].sum[0] + x[t][b].sum[1] : x[t][b].sum[first / 16];
      float* total = sums + t * kSumsStride;
      F result = fma(mul(to_float(acc[t]), set_f(step)), load_f(w.scale[g]), load_f(total));
      if constexpr (kMin) result = fma(load_f(w.min[g]), set_f(step * (float)sum), result);
      store_f(total, result);
    }
  }
}

// Lines of the tokens that come next, all at once: here products take longer.
template <int T, class Block>
KT_INLINE void fetch(const void* const* rows, int64_t at, int blocks) {
  for (int t = 0; t < T; ++t)
    for (int64_t i = 0; i < blocks * (int64_t)sizeof(Block); i += 64)
      __builtin_prefetch((const uint8_t*)rows[t] + at + i, 0, 3);
}

// `blocks` times T tokens.
template <int T, int R, int V, bool kMin, int kChunk>
static void digit_kernel(const SlabRows<V, kMin>* w, const ZeroTable& table, int groups,
                         const void* const* rows, int blocks, int64_t at, float* sums,
                         Prefetcher& next) {
  for (int i = 0; i < blocks; ++i, rows += T, sums += T * kSumsStride) {
    Prefetcher::step(next);
    if (i + 1 < blocks) fetch<T, DigitBlock>(rows + T, at, 1);
    for (int r = 0; r < R; ++r)
      digit_rows<T, V, kMin, kChunk>(w[r], table.rows[0][r][0], groups, rows, at, sums + 16 * r);
  }
}

template <int T, int R, int V, bool kMin>
static void exact_kernel(const SlabRows<V, kMin>* w, int groups, const void* const* rows,
                         int blocks, int64_t at, float* sums, Prefetcher& next) {
  for (int i = 0; i < blocks; ++i, rows += T, sums += T * kSumsStride) {
    Prefetcher::step(next);
    if (i + 1 < blocks) fetch<T, ActBlock>(rows + T, at, 8);
    for (int r = 0; r < R; ++r) exact_rows<T, V, kMin>(w[r], groups, rows, at, sums + 16 * r);
  }
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
