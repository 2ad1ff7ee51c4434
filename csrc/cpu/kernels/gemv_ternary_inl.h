// gemv_record of the ternary formats. TQ1_0 packs five digits into a byte, by powers of three: they
// come out one after the other, or, where bytes can be looked up (AVX-512 VBMI), all from two
// tables.
#pragma once

#include "cpu/kernels/byte_halves_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

#if defined(KT_HAS_GEMV)

#if defined(KT_ISA_AVX2)

template <int T>
KT_INLINE void gemv_record(quant::TQ2_0, const uint8_t* record, const ByteBlock* const* x,
                           F* total) {
  using Q = quant::TQ2_0;
  const F d = head_halves(record);
  const F scale[2] = {d, mul(d, set_f(1.0f / 4))};
  const uint8_t* p = quant::r16_word<Q>(record, 0);
#pragma GCC unroll 1
  for (int h = 0; h < 2; ++h, p += 512) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const uint8_t* lines = afresh(p);
      const ByteBlock* y[T];
      ByteSums a[T];
      KT_TOKENS {
        y[t] = x[t] + 4 * h + v;
        a[t] = sums_from(y[t], 2, v % 2 * 2);
      }
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        const I w = take_line<T>(lines + 64 * j);
        KT_TOKENS mac(a[t], two_bits(w, v), y[t], 4 * j);
      }
      KT_TOKENS total[t] = add_dot(total[t], acc_sum(a[t]), y[t], scale[v % 2]);
    }
  }
}

#else

template <int T>
KT_INLINE void gemv_record(quant::TQ2_0, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::TQ2_0;
  const F d = head_halves(record);
  const float in_place[4] = {1.0f, 1.0f / 4, 1.0f / 16, 1.0f / 64};
  const I bits[4] = {bytes_of(0x03), bytes_of(0x0C), bytes_of(0x30), bytes_of(0xC0)};
  const uint8_t* p = quant::r16_word<Q>(record, 0);
#pragma GCC unroll 1
  for (int h = 0; h < 2; ++h, p += 512) {
    Acc a[4][T];
    const ActBlock* y[T];
    KT_TOKENS {
      y[t] = x[t] + 4 * h;
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) a[v][t] = acc_from(-(1 << 2 * v) * sum32(y[t] + v));
    }
#pragma GCC unroll 2
    for (int j = 0; j < 8; ++j) {
      const I w = take_line<T>(p + 64 * j);
      KT_TOKENS {
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) mac(a[v][t], band(w, bits[v]), y[t] + v, 4 * j);
      }
    }
    KT_TOKENS {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v)
        total[t] = add_dot(total[t], acc_sum(a[v][t]), y[t] + v, mul(d, set_f(in_place[v])));
    }
  }
}

#endif

#if defined(__AVX512VBMI__)

// Digits of a byte: four in fields of two bits, and the fifth.
struct TernaryBook {
  alignas(64) uint8_t four[256], fifth[256];
  constexpr TernaryBook() : four(), fifth() {
    for (int b = 0; b < 256; ++b) {
      int rest = b;
      for (int n = 0; n < 4; ++n, rest = rest * 3 % 256)
        four[b] = (uint8_t)(four[b] | rest * 3 / 256 << 2 * n);
      fifth[b] = (uint8_t)(rest * 3 / 256);
    }
  }
};
constexpr TernaryBook kTernary;

KT_INLINE I ternary_fields(const uint8_t (&table)[256], I bytes) {
  const __m512i a =
      _mm512_permutex2var_epi8(_mm512_load_si512(table), bytes.v, _mm512_load_si512(table + 64));
  const __m512i b = _mm512_permutex2var_epi8(_mm512_load_si512(table + 128), bytes.v,
                                             _mm512_load_si512(table + 192));
  return {_mm512_mask_mov_epi8(a, _mm512_movepi8_mask(bytes.v), b)};
}

template <int T>
KT_INLINE void gemv_record(quant::TQ1_0, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::TQ1_0;
  const F d = head_halves(record);
  const I digit = bytes_of(3);
  {
    // The first eight words: digit n belongs to group n. Fields are used in place.
    const F scale[5] = {d, mul(d, set_f(1.0f / 4)), mul(d, set_f(1.0f / 16)),
                        mul(d, set_f(1.0f / 64)), d};
    const I field[4] = {digit, bytes_of(0x0C), bytes_of(0x30), bytes_of(0xC0)};
    Acc a[5][T];
    KT_TOKENS {
#pragma GCC unroll 5
      for (int n = 0; n < 5; ++n) a[n][t] = acc_from(-(n < 4 ? 1 << 2 * n : 1) * sum32(x[t] + n));
    }
#pragma GCC unroll 2
    for (int j = 0; j < 8; ++j) {
      const I w = take_line<T>(quant::r16_word<Q>(record, j));
      const I four = ternary_fields(kTernary.four, w), fifth = ternary_fields(kTernary.fifth, w);
      KT_TOKENS {
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) mac(a[n][t], band(four, field[n]), x[t] + n, 4 * j);
        mac(a[4][t], fifth, x[t] + 4, 4 * j);
      }
    }
    KT_TOKENS {
#pragma GCC unroll 5
      for (int n = 0; n < 5; ++n)
        total[t] = add_dot(total[t], acc_sum(a[n][t]), x[t] + n, scale[n]);
    }
  }
  // Four words: digit n of word j are the values from 160 + 16 n + 4 j. The last: from 240 + 4 n.
  Acc a[3][2][T];
  KT_TOKENS {
#pragma GCC unroll 3
    for (int g = 0; g < 3; ++g) a[g][0][t] = a[g][1][t] = acc_from(0);
  }
#pragma GCC unroll 1
  for (int j = 0; j < 4; ++j) {
    const I w = take_line<T>(quant::r16_word<Q>(record, 8 + j));
    const I four = ternary_fields(kTernary.four, w), fifth = ternary_fields(kTernary.fifth, w);
    KT_TOKENS {
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n)
        mac(a[n / 2][n % 2][t], band(shr(four, 2 * n), digit), x[t] + 5 + n / 2,
            n % 2 * 16 + 4 * j);
      mac(a[2][0][t], fifth, x[t] + 7, 4 * j);
    }
  }
  const I last = ternary_fields(kTernary.four, take_line<T>(quant::r16_word<Q>(record, 12)));
  KT_TOKENS {
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n)
      mac(a[2][1][t], band(shr(last, 2 * n), digit), x[t] + 7, 16 + 4 * n);
#pragma GCC unroll 3
    for (int g = 0; g < 3; ++g) {
      const I dot = add(acc_sum(a[g][0][t]), acc_sum(a[g][1][t]));
      total[t] = add_dot(total[t], add(dot, set_i(-sum32(x[t] + 5 + g))), x[t] + 5 + g, d);
    }
  }
}

#else

// Ternary digits, one a byte times 64, of bytes whose complement is given: floor(3 b / 256), which
// is floor((b + floor(b / 2)) / 2) / 64. An average of complements rounds down.
KT_INLINE I ternary_digit(I complement) {
  const I all = bytes_of(0xFF), rest = average_bytes(complement, average_bytes(complement, all));
  return band(bxor(rest, all), bytes_of(0xC0));
}

// The complement of 3 b of every byte b.
KT_INLINE I ternary_next(I complement) {
  return add_bytes(add_bytes(complement, complement), add_bytes(complement, bytes_of(2)));
}

// acc[group] += words of digits: digit n of word w belongs to the values from at + stride n + 4 w.
template <int at, int stride, int digits, int T>
KT_INLINE void ternary_words(const uint8_t* words, int count, const ActBlock* const* x,
                             Acc (*acc)[T]) {
#pragma GCC unroll 1
  for (int w = 0; w < count; ++w) {
    I b = bxor(take_line<T>(words + 64 * w), bytes_of(0xFF));
#pragma GCC unroll 5
    for (int n = 0; n < digits; ++n) {
      const int group = (at + stride * n) / 32, within = (at + stride * n) % 32 + 4 * w;
      const I u = ternary_digit(b);
      KT_TOKENS mac(acc[group][t], u, x[t] + group, within);
      b = ternary_next(b);
    }
  }
}

template <int T>
KT_INLINE void gemv_record(quant::TQ1_0, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::TQ1_0;
  Acc acc[8][T];
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) KT_TOKENS acc[g][t] = acc_from(-64 * sum32(x[t] + g));
  ternary_words<0, 32, 5, T>(quant::r16_word<Q>(record, 0), 8, x, acc);
  ternary_words<160, 16, 5, T>(quant::r16_word<Q>(record, 8), 4, x, acc);
  ternary_words<240, 4, 4, T>(quant::r16_word<Q>(record, 12), 1, x, acc);
  const F scale = mul(head_halves(record), set_f(1.0f / 64));
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g)
    KT_TOKENS total[t] = add_dot(total[t], acc_sum(acc[g][t]), x[t] + g, scale);
}

#endif

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
