// The inner products of the prompt GEMM on AVX-512 VNNI: R row groups of a slab (a register of int32
// lanes each) times T tokens.
//
// Digits, R = 2, T = 4: 8 accumulators, 8 float partial sums, 2 weight words, 4 broadcast
// activations: 22 of 32 registers. Five or six tokens leave less room to what comes next and take a
// sixth longer each, but half as long as one or two by themselves.
// Per 256 columns and accumulator 64 dot products and, in the same multiplier, one fma per group
// with its scale, one with its minimum, and three for the outlier and the unit: 64 / 75 of its slots
// are dot products for groups of 32, 64 / 83 with minima or for groups of 16. The load of the
// accumulator's start - what the zero point takes off, from a table - replaces its clearing; shift
// and conversion run on other ports.
// Halves, R = 2, T = 4: 16 accumulators (high and low), 8 totals, 2 words.
//
// Overflow: see digits_inl.h and activations_inl.h; nothing here reaches 2^31.
#pragma once

#include "cpu/kernels/activations_inl.h"
#include "cpu/kernels/prefetcher_inl.h"
#include "cpu/kernels/zero_points_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

constexpr int chunk_words(int, int, int) {  // 16-bit sums have no part here
  return 0;
}
template <int kChunk>
constexpr int kDigitTokens = 4;
template <int kChunk>
constexpr int kDigitTokensAtEnd = 6;
constexpr int kExactTokens = 4;

KT_INLINE __m512i broadcast_word(const void* p) {
  int32_t word;
  memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}

// T tokens. rows: one token each, whose blocks are `at` bytes
// in; ahead: tokens to fetch. sums: [T][kSumsStride], row group r from 16 r on.
template <int T, int R, int V, bool kMin>
KT_INLINE void digit_block(const SlabRows<V, kMin>* w, const ZeroTable& table, int groups,
                           const void* const* rows, const void* const* ahead, int64_t at,
                           float* sums) {
  const DigitBlock* x[T];
  __m512 part[R][T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    x[t] = (const DigitBlock*)((const uint8_t*)rows[t] + at);
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) part[r][t] = _mm512_setzero_ps();
  }
  const uint8_t* zeros = (const uint8_t*)table.rows;
  for (int g = 0; g < groups; ++g, zeros += sizeof table.rows[0]) {
    const int b = V == 8 ? g : g / 2;
    __m512i acc[R][T];
    if (V == 8 || g % 2 == 0) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t)
        __builtin_prefetch((const uint8_t*)ahead[t] + at + 64 * b, 0, 3);
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const uint8_t* start = zeros + x[t]->zero_at[b];
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r)
        acc[r][t] = _mm512_load_si512(start + r * sizeof table.rows[0][0]);
    }
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) {
      __m512i word[R];
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) word[r] = _mm512_load_si512(w[r].w[g * V + j]);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m512i d = broadcast_word(x[t]->digit + g * (V * 4) + j * 4);
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) acc[r][t] = _mm512_dpbusd_epi32(acc[r][t], d, word[r]);
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const __m512i shift = broadcast_word(&x[t]->shift[b]);
      const __m512 sum = _mm512_set1_ps(V == 8 ? x[t]->sum[b] : x[t]->half_sum[g]);
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        const __m512 dot = _mm512_cvtepi32_ps(_mm512_sllv_epi32(acc[r][t], shift));
        part[r][t] = _mm512_fmadd_ps(dot, _mm512_load_ps(w[r].scale[g]), part[r][t]);
        if constexpr (kMin)
          part[r][t] = _mm512_fmadd_ps(sum, _mm512_load_ps(w[r].min[g]), part[r][t]);
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    const __m512 unit = _mm512_set1_ps(x[t]->unit), outlier = _mm512_set1_ps(x[t]->outlier);
    const int column = x[t]->outlier_at;
    const __m128i left = _mm_cvtsi32_si128(24 - 8 * (column % 4));
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      const __m512i words = _mm512_load_si512(w[r].w[column / 4]);
      const __m512i byte = _mm512_srai_epi32(_mm512_sll_epi32(words, left), 24);
      const __m512 weight =
          _mm512_mul_ps(_mm512_cvtepi32_ps(byte), _mm512_load_ps(w[r].scale[column / (V * 4)]));
      float* total = sums + t * kSumsStride + r * 16;
      const __m512 dots = _mm512_fmadd_ps(part[r][t], unit, _mm512_load_ps(total));
      _mm512_store_ps(total, _mm512_fmadd_ps(weight, outlier, dots));
    }
  }
}

// `blocks` times T tokens.
template <int T, int R, int V, bool kMin, int>
static void digit_kernel(const SlabRows<V, kMin>* w, const ZeroTable& table, int groups,
                         const void* const* rows, int blocks, int64_t at, float* sums,
                         Prefetcher& next) {
  for (int i = 0; i < blocks; ++i, rows += T, sums += T * kSumsStride) {
    Prefetcher::step(next);
    digit_block<T, R, V, kMin>(w, table, groups, rows, i + 1 < blocks ? rows + T : rows, at, sums);
  }
}

// The multiplier wants unsigned weights: 128 more than they are where they may be negative, which
// the accumulator's start takes off.
template <int T, int R, int V, bool kMin>
KT_INLINE void exact_block(const SlabRows<V, kMin>* w, int groups, const void* const* rows,
                           const void* const* ahead, int64_t at, float* sums) {
  constexpr int offset = kMin ? 0 : 128;
  const ActBlock* x[T];
  __m512 total[R][T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    x[t] = (const ActBlock*)((const uint8_t*)rows[t] + at);
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) total[r][t] = _mm512_load_ps(sums + t * kSumsStride + r * 16);
  }
  for (int g = 0; g < groups; ++g) {
    const int b = V == 8 ? g : g / 2, first = V == 8 ? 0 : g % 2 * 16;
    __m512i high[R][T], low[R][T];
    int32_t sum[T];
    if (V == 8 || g % 2 == 0) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t)
        __builtin_prefetch((const ActBlock*)((const uint8_t*)ahead[t] + at) + b, 0, 3);
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      sum[t] = V == 8 ? x[t][b].sum[0] + x[t][b].sum[1] : x[t][b].sum[first / 16];
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        high[r][t] = _mm512_setzero_si512();
        low[r][t] = _mm512_set1_epi32(-offset * sum[t]);
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j) {
      __m512i word[R];
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        word[r] = _mm512_load_si512(w[r].w[g * V + j]);
        if constexpr (!kMin) word[r] = _mm512_xor_si512(word[r], _mm512_set1_epi8(-128));
      }
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m512i h = broadcast_word(x[t][b].hi + first + j * 4);
        const __m512i l = broadcast_word(x[t][b].lo + first + j * 4);
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) {
          high[r][t] = _mm512_dpbusd_epi32(high[r][t], word[r], h);
          low[r][t] = _mm512_dpbusd_epi32(low[r][t], word[r], l);
        }
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const float step = x[t][b].scale;
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        const __m512i dot = _mm512_add_epi32(_mm512_slli_epi32(high[r][t], 8), low[r][t]);
        const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(step));
        total[r][t] = _mm512_fmadd_ps(scaled, _mm512_load_ps(w[r].scale[g]), total[r][t]);
        if constexpr (kMin)
          total[r][t] = _mm512_fmadd_ps(_mm512_load_ps(w[r].min[g]),
                                        _mm512_set1_ps(step * (float)sum[t]), total[r][t]);
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) _mm512_store_ps(sums + t * kSumsStride + r * 16, total[r][t]);
  }
}

// `blocks` times T tokens.
template <int T, int R, int V, bool kMin>
static void exact_kernel(const SlabRows<V, kMin>* w, int groups, const void* const* rows,
                         int blocks, int64_t at, float* sums, Prefetcher& next) {
  for (int i = 0; i < blocks; ++i, rows += T, sums += T * kSumsStride) {
    Prefetcher::step(next);
    exact_block<T, R, V, kMin>(w, groups, rows, i + 1 < blocks ? rows + T : rows, at, sums);
  }
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
