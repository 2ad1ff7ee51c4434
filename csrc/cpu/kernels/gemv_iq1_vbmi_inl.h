// gemv_record of IQ1_S and IQ1_M by look-ups in registers (vbmi_inl.h). A point's eight values are
// two bytes of four fields. Of the 2048 points
//
//   the low bytes     are looked up: sixteen tables of 128, between which the upper bits choose
//   the high bytes    are sorted, and among sixteen neighbours there are at most two: which they
//                     are, and from which on it is the second, are three tables of 128
//
// x points to reordered activations, whose sums are the offsets that products need.
#pragma once

#include "cpu/kernels/vbmi_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

struct Iq1Bytes {
  alignas(64) uint8_t low[2048];
  alignas(64) uint8_t first[128], second[128], from[128];
  bool two_at_most = true;
  constexpr Iq1Bytes() : low(), first(), second(), from() {
    for (int i = 0; i < 2048; ++i) low[i] = (uint8_t)quant::kIq1Grid[i];
    for (int q = 0; q < 128; ++q) {
      const uint16_t* point = quant::kIq1Grid + 16 * q;
      first[q] = (uint8_t)(point[0] >> 8);
      second[q] = (uint8_t)(point[15] >> 8);
      while (from[q] < 15 && point[from[q]] >> 8 == first[q]) ++from[q];
      for (int i = 0; i < 16; ++i)
        two_at_most &= point[i] >> 8 == (i < from[q] ? first[q] : second[q]);
    }
  }
};
constexpr Iq1Bytes kIq1Bytes;
static_assert(kIq1Bytes.two_at_most);

// The two bytes of each of four points of sixteen rows, for two groups of 32 values.
struct Iq1Codes {
  __m512i low[2], high[2];
};
// From the low bytes of the indices, and bytes that have their three upper bits in bits 4 to 6.
KT_INLINE Iq1Codes find_iq1(const I (&low)[2], const I (&upper)[2]) {
  const I nibble = bytes_of(0x0F);
  Iq1Codes codes;
  Indices index[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const I sixteen = select(nibble, shr(low[i], 4), upper[i]);
    const I from = find_in_128(kIq1Bytes.from, sixteen);
    codes.high[i] = _mm512_mask_mov_epi8(find_in_128(kIq1Bytes.first, sixteen).v,
                                         _mm512_cmple_epu8_mask(from.v, band(low[i], nibble).v),
                                         find_in_128(kIq1Bytes.second, sixteen).v);
    index[i] = {low[i].v,
                {_mm512_movepi8_mask(low[i].v), any_set(upper[i], 0x10101010),
                 any_set(upper[i], 0x20202020), any_set(upper[i], 0x40404040)}};
  }
  find_bytes<2048, 2>(kIq1Bytes.low, index, codes.low);
  return codes;
}

// 2 s + 1 of a three-bit s, whatever the bit above it.
constexpr Sixteen kIq1Factors([](int s) { return (float)(2 * (s % 8) + 1); });

// The digit in bits 2 and 3 of a byte.
struct Iq1Second {
  alignas(64) uint8_t digit[64];
  constexpr Iq1Second() : digit() {
    for (int i = 0; i < 64; ++i) digit[i] = (uint8_t)(i >> 2 & 3);
  }
};
constexpr Iq1Second kIq1Second;

KT_INLINE void order_activations(quant::IQ1_S, const ActBlock* from, int64_t blocks, ActBlock* to) {
  for (int64_t b = 0; b < blocks; ++b) {
    order_block(from[b], kFourByEight, to[b]);
    // Eight times t + 1, less 8 and an eighth more or less, which is 1 here.
    const int32_t sum = sum32(from + b);
    to[b].sum[0] = -7 * sum;
    to[b].sum[1] = -9 * sum;
  }
}

template <int T>
KT_INLINE void gemv_record(quant::IQ1_S, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ1_S;
  const F d = mul(head_halves(record), set_f(0.125f));
  const I three = bytes_of(3);
  const auto find = [&](int g) __attribute__((always_inline)) {
    const I more = take_slow_line(quant::r16_word<Q>(record, 8 + g / 2));
    const I low[2] = {take_slow_line(quant::r16_word<Q>(record, g)),
                      take_slow_line(quant::r16_word<Q>(record, g + 1))};
    const I upper[2] = {bit_fields<-4, -1, 2, 5>(more), bit_fields<12, 15, 18, 21>(more)};
    return find_iq1(low, upper);
  };
  pairs_of_groups(find, [&](int g, const Iq1Codes& codes) __attribute__((always_inline)) {
    const I more = word<Q>(record, 8 + g / 2);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const ActBlock* y[T];
      GroupAcc<T> acc;
      const __mmask16 down = _mm512_test_epi32_mask(more.v, _mm512_set1_epi32(0x8000 << 16 * i));
      KT_TOKENS {
        y[t] = x[t] + g + i;
        start(acc, t, 0);
      }
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        I code = {half == 0 ? codes.low[i] : codes.high[i]};
        Acc* chain = chain_of(acc, half);
#pragma GCC unroll 2
        for (int pair = 0; pair < 2; ++pair, code = shr(code, 4)) {
          const I u = band(code, three), v = find_in_64(kIq1Second.digit, code);
          KT_TOKENS mac(chain[t], u, y[t], 16 * half + 8 * pair);
          KT_TOKENS mac(chain[t], v, y[t], 16 * half + 8 * pair + 4);
        }
      }
      const F scale = mul(d, pick_float(shr(more, 12 + 16 * i), kIq1Factors.at));
      KT_TOKENS {
        const __m512i rest = _mm512_mask_mov_epi32(_mm512_set1_epi32(y[t]->sum[0]), down,
                                                   _mm512_set1_epi32(y[t]->sum[1]));
        total[t] = add_dot(total[t], add(shl(acc_sum(acc, t), 3), I{rest}), y[t], scale);
      }
    }
  });
}

// Values v and v + 4 of two points, for v from 0 to 3.
constexpr Order kIq1mOrder([](int i) {
  return i / 16 * 16 + i % 2 * 8 + i / 2 % 2 * 4 + i / 4 % 4;
});

// 8 c + 2 where bit 4 is clear, 8 c where it is set, for the digits c in bits 0 and 1, or 2 and 3.
struct Iq1Shifted {
  alignas(64) uint8_t first[64], second[64];
  constexpr Iq1Shifted() : first(), second() {
    for (int i = 0; i < 64; ++i) {
      first[i] = (uint8_t)(8 * (i & 3) + (i & 16 ? 0 : 2));
      second[i] = (uint8_t)(8 * (i >> 2 & 3) + (i & 16 ? 0 : 2));
    }
  }
};
constexpr Iq1Shifted kIq1Shifted;

KT_INLINE void order_activations(quant::IQ1_M, const ActBlock* from, int64_t blocks, ActBlock* to) {
  for (int64_t b = 0; b < blocks; ++b) {
    order_block(from[b], kIq1mOrder, to[b]);
    for (int32_t& sum : to[b].sum) sum *= -quant::IQ1_M::kOffset;
  }
}

// Bit 3 of each of the four bits that points have beside their low bytes, in bit 4: points 0, 1, 0,
// 1, or 2, 3, 2, 3, of the first or the second group of `more`.
template <int half, int i>
KT_INLINE I iq1_m_deltas(I more) {
  constexpr int at = 16 * i + 8 * half - 1;
  return bit_fields<at, at + 4, at, at + 4>(more);
}

template <int T>
KT_INLINE void gemv_record(quant::IQ1_M, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ1_M;
  F sum[T];
  KT_TOKENS sum[t] = zero_f();
  const auto find = [&](int g) __attribute__((always_inline)) {
    const I more = take_slow_line(quant::r16_word<Q>(record, 8 + g / 2));
    const I low[2] = {take_slow_line(quant::r16_word<Q>(record, g)),
                      take_slow_line(quant::r16_word<Q>(record, g + 1))};
    const I upper[2] = {bit_fields<-4, 0, 4, 8>(more), bit_fields<12, 16, 20, 24>(more)};
    return find_iq1(low, upper);
  };
  pairs_of_groups(find, [&](int g, const Iq1Codes& codes) __attribute__((always_inline)) {
    const I more = word<Q>(record, 8 + g / 2), nibble = bytes_of(0x0F);
    const I scales = shr(word<Q>(record, 12 + g / 4), g / 2 % 2 * 16);
    const I deltas[2][2] = {{iq1_m_deltas<0, 0>(more), iq1_m_deltas<1, 0>(more)},
                            {iq1_m_deltas<0, 1>(more), iq1_m_deltas<1, 1>(more)}};
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const I a = {codes.low[i]}, b = {codes.high[i]};
      I code[2] = {low_halves(a, b), high_halves(a, b)};
      const ActBlock* y[T];
      Acc acc[2][T];
      KT_TOKENS y[t] = x[t] + g + i;
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        KT_TOKENS acc[half][t] = acc_from(y[t]->sum[half]);
#pragma GCC unroll 2
        for (int pair = 0; pair < 2; ++pair, code[half] = shr(code[half], 4)) {
          const I z = select(nibble, code[half], deltas[i][half]);
          const I u = find_in_64(kIq1Shifted.first, z), v = find_in_64(kIq1Shifted.second, z);
          KT_TOKENS mac(acc[half][t], u, y[t], 16 * half + 8 * pair);
          KT_TOKENS mac(acc[half][t], v, y[t], 16 * half + 8 * pair + 4);
        }
      }
      const F first = pick_float(shr(scales, 6 * i), kIq1Factors.at);
      const F second = pick_float(shr(scales, 6 * i + 3), kIq1Factors.at);
      KT_TOKENS sum[t] = add_two_dots(sum[t], acc_sum(acc[0][t]), first, acc_sum(acc[1][t]), second,
                                      y[t]);
    }
  });
  const F d = mul(iq1_m_head(record), set_f(0.125f));
  KT_TOKENS total[t] = fma(sum[t], d, total[t]);
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
