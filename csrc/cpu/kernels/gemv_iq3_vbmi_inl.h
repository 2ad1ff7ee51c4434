// gemv_record of IQ3 by look-ups in registers (vbmi_inl.h). A point is two bytes, each of two codes
// of three bits; between them go the two signs, and five bits are looked up once more for each of
// the two values, with the offset.
//
//   a byte: code of value 0 (or 2) in bits 0 to 2, signs of both in bits 3 and 4, code of value 1
//   (or 3) in bits 5 to 7
//
// x points to reordered activations, whose sums are the offsets that accumulators need.
#pragma once

#include "cpu/kernels/vbmi_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

template <int n>
struct Iq3Bytes {
  alignas(64) uint8_t first[n], second[n];
  constexpr explicit Iq3Bytes(const uint16_t* from) : first(), second() {
    for (int i = 0; i < n; ++i) {
      first[i] = two(from[i]);
      second[i] = two(from[i] >> 6);
    }
  }
  static constexpr uint8_t two(int codes) { return (uint8_t)((codes & 7) | (codes >> 3 & 7) << 5); }
};
constexpr Iq3Bytes<256> kIq3xxsBytes(quant::kIq3xxsGrid);
constexpr Iq3Bytes<512> kIq3sBytes(quant::kIq3sGrid);

// Of such a byte the first value, and of one moved by three bits the second.
template <class Q>
struct Iq3Values {
  alignas(64) uint8_t first[64], second[64];
  constexpr explicit Iq3Values(const uint8_t* levels) : first(), second() {
    for (int i = 0; i < 64; ++i) {
      first[i] = value(levels[i & 7], i >> 3 & 1);
      second[i] = value(levels[i >> 2 & 7], i >> 1 & 1);
    }
  }
  static constexpr uint8_t value(int level, int sign) {
    return (uint8_t)(sign ? Q::kOffset - level : Q::kOffset + level);
  }
};
constexpr Iq3Values<quant::IQ3_XXS> kIq3xxsValues(quant::kIq3xxsLevels);
constexpr Iq3Values<quant::IQ3_S> kIq3sValues(quant::kIq3sLevels);

template <class Q>
KT_INLINE void order_iq3(const ActBlock* from, int64_t blocks, ActBlock* to) {
  for (int64_t b = 0; b < blocks; ++b) {
    order_block(from[b], kFourByFour, to[b]);
    to[b].sum[0] = -Q::kOffset * sum32(from + b);
  }
}
KT_INLINE void order_activations(quant::IQ3_XXS, const ActBlock* from, int64_t n, ActBlock* to) {
  order_iq3<quant::IQ3_XXS>(from, n, to);
}
KT_INLINE void order_activations(quant::IQ3_S, const ActBlock* from, int64_t n, ActBlock* to) {
  order_iq3<quant::IQ3_S>(from, n, to);
}

// dot = the products of a group of 32 values, with indices for each half of its points and four
// bytes of signs.
template <class Q, int T, int n>
KT_INLINE void iq3_group(const Iq3Bytes<n>& book, const Iq3Values<Q>& values,
                         const Indices (&index)[2], I signs, const ActBlock* const* y, I* dot) {
  __m512i first[2], second[2];
  find_bytes<n, 2>(book.first, index, first);
  find_bytes<n, 2>(book.second, index, second);
  GroupAcc<T> acc;
  KT_TOKENS start(acc, t, y[t]->sum[0]);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    // The four signs of each of four points, from bit 3 on.
    const I four = half == 0 ? bit_fields<-3, 1, 5, 9>(signs) : bit_fields<13, 17, 21, 25>(signs);
#pragma GCC unroll 2
    for (int pair = 0; pair < 2; ++pair) {
      const I z = select(bytes_of(0x18), pair == 0 ? four : shr(four, 2),
                         {pair == 0 ? first[half] : second[half]});
      const I u = find_in_64(values.first, z), v = find_in_64(values.second, shr(z, 3));
      KT_TOKENS mac(chain_of(acc, half)[t], u, y[t], 16 * half + 8 * pair);
      KT_TOKENS mac(chain_of(acc, half)[t], v, y[t], 16 * half + 8 * pair + 4);
    }
  }
  KT_TOKENS dot[t] = acc_sum(acc, t);
}

template <int T>
KT_INLINE void gemv_record(quant::IQ3_XXS, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ3_XXS;
  const F d = mul(head_halves(record), set_f(kIq3xxsFactor));
#pragma GCC unroll 1
  for (int g = 0; g < 8; ++g) {
    const I more = take_slow_line(quant::r16_word<Q>(record, 16 + g));
    Indices index[2];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const I w = take_slow_line(quant::r16_word<Q>(record, 2 * g + half));
      index[half] = {w.v, {_mm512_movepi8_mask(w.v)}};
    }
    const ActBlock* y[T];
    I dot[T];
    KT_TOKENS y[t] = x[t] + g;
    const I signs = find_in_128(kEvenSigns.eight, bit_fields<0, 7, 14, 21>(more));
    iq3_group<Q, T>(kIq3xxsBytes, kIq3xxsValues, index, signs, y, dot);
    const F scale = mul(d, pick_float(shr(more, 28), kHalfSteps.at));
    KT_TOKENS total[t] = add_dot(total[t], dot[t], y[t], scale);
  }
}

template <int T>
KT_INLINE void gemv_record(quant::IQ3_S, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ3_S;
  const F d = head_halves(record);
#pragma GCC unroll 1
  for (int g = 0; g < 8; ++g) {
    const I signs = take_slow_line(quant::r16_word<Q>(record, 18 + g));
    const I bits = shr(word<Q>(record, 16 + g / 4), g % 4 * 8);
    Indices index[2];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const I w = take_slow_line(quant::r16_word<Q>(record, 2 * g + half));
      const I bit = half == 0 ? bit_fields<0, 1, 2, 3>(bits) : bit_fields<4, 5, 6, 7>(bits);
      index[half] = {w.v, {_mm512_movepi8_mask(w.v), any_set(bit, 0x01010101)}};
    }
    const ActBlock* y[T];
    I dot[T];
    KT_TOKENS y[t] = x[t] + g;
    iq3_group<Q, T>(kIq3sBytes, kIq3sValues, index, signs, y, dot);
    const F scale = mul(d, pick_float(shr(word<Q>(record, 26), 4 * g), kOddNumbers.at));
    KT_TOKENS total[t] = add_dot(total[t], dot[t], y[t], scale);
  }
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
