// gemv_record of IQ1_S and IQ1_M, whose codebook of 2048 points is too large for permutations (but
// with VBMI): a point is a load. AVX-512 loads it as the eight bytes that are multiplied, for eight
// rows a vector; AVX2 in two bits a value (codebook_inl.h), and there x points to reordered
// activations.
#pragma once

#include "cpu/kernels/codebook_inl.h"
#include "cpu/kernels/iq_scales_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

#if defined(KT_HAS_GEMV)

// What a group of 32 values has besides the low bits of its indices, from bit 0 on.
template <class Q>
KT_INLINE I iq1_more(const uint8_t* record, int g) {
  return shr(word<Q>(record, 8 + g / 2), g % 2 * 16);
}

// Indices of a group's points 0 and 1, and 2 and 3, from their low bits and iq1_more.
KT_INLINE void iq1_indices(quant::IQ1_S, I low, I more, I (&index)[2]) {
  index[0] = with_upper_bits(first_indices(low), more, 7, 8, 21);
  index[1] = with_upper_bits(second_indices(low), more, 7, 2, 15);
}
KT_INLINE void iq1_indices(quant::IQ1_M, I low, I more, I (&index)[2]) {
  index[0] = with_upper_bits(first_indices(low), more, 7, 8, 20);
  index[1] = with_upper_bits(second_indices(low), more, 7, 0, 12);
}

// IQ1_M: three bits for each half of a group.
KT_INLINE I iq1_m_scales(const uint8_t* record, int g) {
  return shr(word<quant::IQ1_M>(record, 12 + g / 4), g / 2 % 2 * 16 + g % 2 * 6);
}

#endif

#if defined(KT_ISA_AVX512)

// A point as eight bytes: 8 (t + 1) of each of its values.
struct Iq1Points {
  alignas(64) uint64_t at[2048];
  constexpr Iq1Points() : at() {
    for (int p = 0; p < 2048; ++p)
      for (int i = 0; i < 8; ++i)
        at[p] |= (uint64_t)(8 * ((quant::kIq1Grid[p] >> 2 * i) & 3)) << 8 * i;
  }
};
constexpr Iq1Points kIq1Points;

KT_INLINE __m128i iq1_two(uint64_t i, uint64_t j) {
  const __m128i low = _mm_loadl_epi64((const __m128i*)(kIq1Points.at + i));
  return _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(low), (const __m64*)(kIq1Points.at + j)));
}
KT_INLINE __m512i iq1_join(const __m128i (&x)[4]) {
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(x[0]), x[1], 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(x[2]), x[3], 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
// Two points of each of eight rows, whose indices stand side by side in `index`.
KT_INLINE void iq1_eight_rows(const uint16_t* index, __m512i& first, __m512i& second) {
  uint64_t four[4];
  memcpy(four, index, 32);
  __m128i a[4], b[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    a[j] = iq1_two(four[j] & 0xFFFF, four[j] >> 32 & 0xFFFF);
    b[j] = iq1_two(four[j] >> 16 & 0xFFFF, four[j] >> 48);
  }
  first = iq1_join(a);
  second = iq1_join(b);
}

// Sums of eight rows in a vector, the halves of a row's in two lanes.
struct Iq1Acc {
  __m512i hi[2], lo[2];  // rows 0..7 and 8..15
};
KT_INLINE Iq1Acc iq1_zero() {
  const __m512i zero = _mm512_setzero_si512();
  return {{zero, zero}, {zero, zero}};
}
KT_INLINE void iq1_mac(Iq1Acc& acc, int r, __m512i bytes, const ActBlock* x, int at) {
  typedef int64_t __attribute__((may_alias)) Eight;
  const __m512i hi = _mm512_set1_epi64(*(const Eight*)(x->hi + at));
  const __m512i lo = _mm512_set1_epi64(*(const Eight*)(x->lo + at));
  asm("vpdpbusd %2, %1, %0" : "+v"(acc.hi[r]) : "v"(bytes), "v"(hi));
  asm("vpdpbusd %2, %1, %0" : "+v"(acc.lo[r]) : "v"(bytes), "v"(lo));
}
KT_INLINE I iq1_sum(const Iq1Acc& acc) {
  const __m512i a = _mm512_add_epi32(_mm512_slli_epi32(acc.hi[0], 8), acc.lo[0]);
  const __m512i b = _mm512_add_epi32(_mm512_slli_epi32(acc.hi[1], 8), acc.lo[1]);
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  return {_mm512_add_epi32(_mm512_permutex2var_epi32(a, even, b),
                           _mm512_permutex2var_epi32(a, odd, b))};
}

// All indices of a record first, then all points: a load cannot take what a wider store beside it
// has just written before that store is done.
template <int T>
KT_INLINE void gemv_record(quant::IQ1_S, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ1_S;
  const F d = head_halves(record);
  alignas(64) uint16_t index[8][2][32];
  alignas(64) float scale[8][16];
  __mmask16 down[8];  // rows whose eighth is taken off
#pragma GCC unroll 2
  for (int g = 0; g < 8; ++g) {
    const I more = iq1_more<Q>(record, g);
    I both[2];
    iq1_indices(Q{}, take_line<T>(quant::r16_word<Q>(record, g)), more, both);
    store_i(index[g][0], both[0]);
    store_i(index[g][1], both[1]);
    down[g] = _mm512_test_epi32_mask(more.v, _mm512_set1_epi32(0x8000));
    store_f(scale[g], iq1_scale(d, bits_of(more, 12, 7)));
  }
#pragma GCC unroll 1
  for (int g = 0; g < 8; ++g) {
    Iq1Acc acc[T];
    KT_TOKENS acc[t] = iq1_zero();
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      __m512i u, v;
      iq1_eight_rows(index[g][i / 2] + 16 * (i % 2), u, v);
      KT_TOKENS {
        iq1_mac(acc[t], i % 2, u, x[t] + g, i / 2 * 16);
        iq1_mac(acc[t], i % 2, v, x[t] + g, i / 2 * 16 + 8);
      }
    }
    KT_TOKENS {
      // 8 (t + 1) less 8, and an eighth more or less, which is 1 here.
      const int32_t sum = sum32(x[t] + g);
      const __m512i rest = _mm512_mask_blend_epi32(down[g], _mm512_set1_epi32(-7 * sum),
                                                   _mm512_set1_epi32(-9 * sum));
      total[t] = add_dot(total[t], add(iq1_sum(acc[t]), I{rest}), x[t] + g, load_f(scale[g]));
    }
  }
}

template <int T>
KT_INLINE void gemv_record(quant::IQ1_M, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ1_M;
  alignas(64) uint16_t index[8][2][32];
  alignas(64) float scale[8][2][16];
  __mmask16 up[8][4];  // rows whose point has an eighth more, for each of four points
#pragma GCC unroll 2
  for (int g = 0; g < 8; ++g) {
    const I more = iq1_more<Q>(record, g);
    I both[2];
    iq1_indices(Q{}, take_line<T>(quant::r16_word<Q>(record, g)), more, both);
    store_i(index[g][0], both[0]);
    store_i(index[g][1], both[1]);
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p)
      up[g][p] = _mm512_testn_epi32_mask(more.v, _mm512_set1_epi32(8 << 4 * p));
    const I s = iq1_m_scales(record, g);
    store_f(scale[g][0], odd_scale(set_f(1.0f), bits_of(s, 0, 7)));
    store_f(scale[g][1], odd_scale(set_f(1.0f), bits_of(s, 3, 7)));
  }
  const __m512i two = _mm512_set1_epi8(2);
  F sum[T];
  KT_TOKENS sum[t] = zero_f();
#pragma GCC unroll 1
  for (int g = 0; g < 8; ++g) {
    I dot[2][T];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      Iq1Acc acc[T];
      KT_TOKENS acc[t] = iq1_zero();
#pragma GCC unroll 2
      for (int r = 0; r < 2; ++r) {
        __m512i u, v;
        iq1_eight_rows(index[g][half] + 16 * r, u, v);
        u = _mm512_mask_or_epi64(u, (__mmask8)(up[g][2 * half] >> 8 * r), u, two);
        v = _mm512_mask_or_epi64(v, (__mmask8)(up[g][2 * half + 1] >> 8 * r), v, two);
        KT_TOKENS {
          iq1_mac(acc[t], r, u, x[t] + g, 16 * half);
          iq1_mac(acc[t], r, v, x[t] + g, 16 * half + 8);
        }
      }
      KT_TOKENS dot[half][t] = add(iq1_sum(acc[t]), set_i(-Q::kOffset * x[t][g].sum[half]));
    }
    KT_TOKENS sum[t] = add_two_dots(sum[t], dot[0][t], load_f(scale[g][0]), dot[1][t],
                                    load_f(scale[g][1]), x[t] + g);
  }
  const F d = mul(iq1_m_head(record), set_f(0.125f));
  KT_TOKENS total[t] = fma(sum[t], d, total[t]);
}

#elif defined(KT_HAS_GEMV)

// acc += two points of IQ1 of every row: bytes 8 c + delta, the deltas being 0 or 2.
template <int T>
KT_INLINE void iq1_pair(I points, I delta, const ActBlock* const* y, int at, Acc* acc) {
  const I code = bytes_of(0x18);
  const I u[4] = {bor(band(shl(points, 3), code), delta), bor(band(shl(points, 1), code), delta),
                  bor(band(shr(points, 1), code), delta), bor(band(shr(points, 3), code), delta)};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) KT_TOKENS mac(acc[t], u[i], y[t], at + 4 * i);
}

// Two in every byte of `w` where the bit of `bits` is clear.
KT_INLINE I iq1_delta(I w, I bits) { return take_from_where(bytes_of(2), w, bits, bytes_of(2)); }

template <int T>
KT_INLINE void gemv_record(quant::IQ1_S, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ1_S;
  const F d = head_halves(record);
#pragma GCC unroll 1
  for (int g = 0; g < 8; ++g) {
    const I more = iq1_more<Q>(record, g);
    I points[2];
    iq1_indices(Q{}, take_line<T>(quant::r16_word<Q>(record, g)), more, points);
    for (I& pair : points) pair = look_up(kIq1Book, pair);
    const I delta = iq1_delta(pick<1, 1, 1, 1>(more), bytes_of(0x80));
    const ActBlock* y[T];
    Acc acc[T];
    KT_TOKENS {
      y[t] = x[t] + g;
      acc[t] = acc_from(-Q::kOffset * sum32(y[t]));
    }
    iq1_pair<T>(points[0], delta, y, 0, acc);
    iq1_pair<T>(points[1], delta, y, 16, acc);
    const F scale = iq1_scale(d, bits_of(more, 12, 7));
    KT_TOKENS total[t] = add_dot(total[t], acc_sum(acc[t]), y[t], scale);
  }
}

template <int T>
KT_INLINE void gemv_record(quant::IQ1_M, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ1_M;
  const F d = iq1_m_head(record);
  const I bits = set_i((int32_t)0x80800808u);
#pragma GCC unroll 1
  for (int g = 0; g < 8; ++g) {
    const I more = iq1_more<Q>(record, g);
    I points[2];
    iq1_indices(Q{}, take_line<T>(quant::r16_word<Q>(record, g)), more, points);
    for (I& pair : points) pair = look_up(kIq1Book, pair);
    const I scales = iq1_m_scales(record, g);
    const ActBlock* y[T];
    KT_TOKENS y[t] = x[t] + g;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      Acc acc[T];
      KT_TOKENS acc[t] = acc_from(-Q::kOffset * y[t]->sum[half]);
      const I delta = iq1_delta(half == 0 ? pick<0, 0, 0, 0>(more) : pick<1, 1, 1, 1>(more), bits);
      iq1_pair<T>(points[half], delta, y, 16 * half, acc);
      const F scale = iq1_scale(d, bits_of(scales, 3 * half, 7));
      KT_TOKENS total[t] = add_dot(total[t], acc_sum(acc[t]), y[t], scale);
    }
  }
}

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
