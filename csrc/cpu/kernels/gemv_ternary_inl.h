// gemv_record of the ternary formats. TQ1_0 packs five digits into a byte, by powers of three: they
// come out one after the other, or, where bytes can be looked up (AVX-512 VBMI), all from two
// tables.
#pragma once

#include "cpu/kernels/byte_halves_inl.h"
#if defined(__AVX512VBMI__)
#include "cpu/kernels/vbmi_inl.h"
#endif

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

// On AVX-512 a record's sums wait for its one scale:
//     a = fma(float(dot), x.scale, a)      per 32 values, from 0
// and it ends with total = fma(a, d, total): another order than that of gemm_inl.h, so these kernels
// take any number of tokens (FormatKernels::few_for_all). Digits used in place are multiples of 2^shift,
// and so are their sums.
KT_INLINE F add_digits(F a, I sum, int shift, const ActBlock* x) {
  return fma(to_float(shift == 0 ? sum : sar(sum, shift)), set_f(x->scale), a);
}

template <int T>
KT_INLINE void gemv_record(quant::TQ2_0, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::TQ2_0;
  const I bits[4] = {bytes_of(0x03), bytes_of(0x0C), bytes_of(0x30), bytes_of(0xC0)};
  const uint8_t* p = quant::r16_word<Q>(record, 0);
  F sum[T];
  KT_TOKENS sum[t] = zero_f();
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
      const I w = take_slow_line(p + 64 * j);
      KT_TOKENS {
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) mac(a[v][t], band(w, bits[v]), y[t] + v, 4 * j);
      }
    }
    KT_TOKENS {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) sum[t] = add_digits(sum[t], acc_sum(a[v][t]), 2 * v, y[t] + v);
    }
  }
  const F d = head_halves(record);
  KT_TOKENS total[t] = fma(sum[t], d, total[t]);
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

// The tables in registers, for one token: loading them for every word costs more than its products.
// More tokens' accumulators need the registers.
struct TernaryTables {
  __m512i four[4], fifth[4];
};
template <int T>
KT_INLINE TernaryTables ternary_tables() {
  TernaryTables tables;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    tables.four[i] = _mm512_load_si512(kTernary.four + 64 * i);
    tables.fifth[i] = _mm512_load_si512(kTernary.fifth + 64 * i);
    if constexpr (T == 1) asm("" : "+v"(tables.four[i]), "+v"(tables.fifth[i]));
  }
  return tables;
}

KT_INLINE I ternary_fields(const __m512i (&table)[4], I bytes) {
  const __m512i low = find_in_two(table[0], table[1], bytes.v),
                high = find_in_two(table[2], table[3], bytes.v);
  return {_mm512_mask_mov_epi8(low, _mm512_movepi8_mask(bytes.v), high)};
}

template <int T>
KT_INLINE void gemv_record(quant::TQ1_0, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::TQ1_0;
  const I digit = bytes_of(3);
  const TernaryTables tables = ternary_tables<T>();
  F sum[T];
  KT_TOKENS sum[t] = zero_f();
  {
    // The first eight words: digit n belongs to group n. Fields are used in place.
    const I field[4] = {digit, bytes_of(0x0C), bytes_of(0x30), bytes_of(0xC0)};
    Acc a[5][T];
    KT_TOKENS {
#pragma GCC unroll 5
      for (int n = 0; n < 5; ++n) a[n][t] = acc_from(-(n < 4 ? 1 << 2 * n : 1) * sum32(x[t] + n));
    }
#pragma GCC unroll 1
    for (int j = 0; j < 8; ++j) {
      const I w = take_slow_line(quant::r16_word<Q>(record, j));
      const I four = ternary_fields(tables.four, w), fifth = ternary_fields(tables.fifth, w);
      KT_TOKENS {
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) mac(a[n][t], band(four, field[n]), x[t] + n, 4 * j);
        mac(a[4][t], fifth, x[t] + 4, 4 * j);
      }
    }
    KT_TOKENS {
#pragma GCC unroll 5
      for (int n = 0; n < 5; ++n)
        sum[t] = add_digits(sum[t], acc_sum(a[n][t]), n < 4 ? 2 * n : 0, x[t] + n);
    }
  }
  // Four words: digit n of word j are the values from 160 + 16 n + 4 j. The last: from 240 + 4 n.
  Acc a[3][2][T];
  KT_TOKENS {
#pragma GCC unroll 3
    for (int g = 0; g < 3; ++g) {
      a[g][0][t] = acc_from(-sum32(x[t] + 5 + g));
      a[g][1][t] = acc_from(0);
    }
  }
#pragma GCC unroll 1
  for (int j = 0; j < 4; ++j) {
    const I w = take_slow_line(quant::r16_word<Q>(record, 8 + j));
    const I four = ternary_fields(tables.four, w), fifth = ternary_fields(tables.fifth, w);
    KT_TOKENS {
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n)
        mac(a[n / 2][n % 2][t], band(shr(four, 2 * n), digit), x[t] + 5 + n / 2,
            n % 2 * 16 + 4 * j);
      mac(a[2][0][t], fifth, x[t] + 7, 4 * j);
    }
  }
  const I last = ternary_fields(tables.four, take_slow_line(quant::r16_word<Q>(record, 12)));
  KT_TOKENS {
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n)
      mac(a[2][1][t], band(shr(last, 2 * n), digit), x[t] + 7, 16 + 4 * n);
#pragma GCC unroll 3
    for (int g = 0; g < 3; ++g) {
      const I dot = add(acc_sum(a[g][0][t]), acc_sum(a[g][1][t]));
      sum[t] = add_digits(sum[t], dot, 0, x[t] + 5 + g);
    }
  }
  const F d = head_halves(record);
  KT_TOKENS total[t] = fma(sum[t], d, total[t]);
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
#if defined(KT_ISA_AVX512)
  F sum[T];
  KT_TOKENS sum[t] = zero_f();
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g)
    KT_TOKENS sum[t] = add_digits(sum[t], acc_sum(acc[g][t]), 6, x[t] + g);
  const F d = head_halves(record);
  KT_TOKENS total[t] = fma(sum[t], d, total[t]);
#else
  const F scale = mul(head_halves(record), set_f(1.0f / 64));
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g)
    KT_TOKENS total[t] = add_dot(total[t], acc_sum(acc[g][t]), x[t] + g, scale);
#endif
}

#endif

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
