// gemv_record of IQ2 by look-ups in registers (vbmi_inl.h). A point is two bytes of four two-bit
// codes, looked up in tables of 128. Two codes and their signs stand in six bits of a byte then,
// which are looked up once more for each of the two values, with the offset.
//
// x points to reordered activations, whose sums are the offsets that accumulators need.
#pragma once

#include "cpu/kernels/vbmi_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

// Values 4, 5, 0 and 1 of every point, from bit 0 on, and 6, 7, 2 and 3: signs need few shifts
// then.
template <int n>
struct Iq2Bytes {
  alignas(64) uint8_t first[n], second[n];
  constexpr explicit Iq2Bytes(const uint16_t* from) : first(), second() {
    for (int i = 0; i < n; ++i) {
      first[i] = (uint8_t)((from[i] >> 8 & 15) | (from[i] & 15) << 4);
      second[i] = (uint8_t)((from[i] >> 12 & 15) | (from[i] >> 4 & 15) << 4);
    }
  }
};
constexpr Iq2Bytes<256> kIq2xxsBytes(quant::kIq2xxsGrid);
constexpr Iq2Bytes<512> kIq2xsBytes(quant::kIq2xsGrid);
constexpr Iq2Bytes<1024> kIq2sBytes(quant::kIq2sGrid);

constexpr int kIq2Offset = quant::IQ2_XXS::kOffset;
static_assert(quant::IQ2_XS::kOffset == kIq2Offset && quant::IQ2_S::kOffset == kIq2Offset);

// Values of two codes and two signs in six bits: codes in the lower four bits or, [above], the
// upper.
struct Iq2Values {
  alignas(64) uint8_t first[2][64], second[2][64];
  constexpr Iq2Values() : first(), second() {
    for (int i = 0; i < 64; ++i) {
      for (int above = 0; above < 2; ++above) {
        const int codes = above ? i >> 2 : i, signs = above ? i : i >> 4;
        first[above][i] = value(codes & 3, signs & 1);
        second[above][i] = value(codes >> 2 & 3, signs >> 1 & 1);
      }
    }
  }
  static constexpr uint8_t value(int code, int sign) {
    const int level = quant::kIq2Levels[code];
    return (uint8_t)(sign ? kIq2Offset - level : kIq2Offset + level);
  }
};
constexpr Iq2Values kIq2Values;

// acc += four vectors of values, codes in `codes` and signs in bits 0, 1, 4 and 5 of `signs`, times
// 16 activations from `at`: values 0, 1, 4 and 5 of points, or two more.
template <int T>
KT_INLINE void iq2_values(I codes, I signs, const ActBlock* const* y, int at, Acc* acc) {
  const I z[2] = {select(bytes_of(0x3C), shr(codes, 2), signs),
                  select(bytes_of(0x0F), codes, signs)};
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const I u = find_in_64(kIq2Values.first[1 - i], z[i]);
    const I v = find_in_64(kIq2Values.second[1 - i], z[i]);
    KT_TOKENS mac(acc[t], u, y[t], at + 8 * i);
    KT_TOKENS mac(acc[t], v, y[t], at + 8 * i + 4);
  }
}

// Values 0, 1, 4, 5, 2, 3, 6 and 7 of four points.
constexpr Order kIq2xxsOrder([](int i) {
  return i % 4 * 8 + i / 16 * 2 + i / 8 % 2 * 4 + i / 4 % 2;
});
// Values v and v + 2 of two points, v being 0, 1, 4, 5.
constexpr Order kIq2Order([](int i) {
  return i / 16 * 16 + i % 2 * 8 + i / 2 % 2 * 2 + i / 8 % 2 * 4 + i / 4 % 2;
});

KT_INLINE void order_activations(quant::IQ2_XXS, const ActBlock* from, int64_t blocks,
                                 ActBlock* to) {
  for (int64_t b = 0; b < blocks; ++b) {
    order_block(from[b], kIq2xxsOrder, to[b]);
    to[b].sum[0] = -kIq2Offset * sum32(from + b);
  }
}

// The two bytes of each of four points of sixteen rows, for two groups of 32 values, and their
// signs.
struct Iq2Points {
  __m512i first[2], second[2];
  I signs[2];
};

template <int T>
KT_INLINE void gemv_record(quant::IQ2_XXS, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ2_XXS;
  const F d = mul(head_halves(record), set_f(kIq2Factor));
  const auto find = [&](int g) __attribute__((always_inline)) {
    Iq2Points points;
    Indices index[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const I low = take_slow_line(quant::r16_word<Q>(record, 2 * (g + i)));
      index[i] = {low.v, {_mm512_movepi8_mask(low.v)}};
      const I more = take_slow_line(quant::r16_word<Q>(record, 2 * (g + i) + 1));
      points.signs[i] = find_in_128(kEvenSigns.eight, bit_fields<0, 7, 14, 21>(more));
    }
    find_bytes<256, 2>(kIq2xxsBytes.first, index, points.first);
    find_bytes<256, 2>(kIq2xxsBytes.second, index, points.second);
    return points;
  };
  pairs_of_groups(find, [&](int g, const Iq2Points& points) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const ActBlock* y[T];
      GroupAcc<T> acc;
      KT_TOKENS {
        y[t] = x[t] + g + i;
        start(acc, t, y[t]->sum[0]);
      }
      iq2_values<T>({points.first[i]}, points.signs[i], y, 0, chain_of(acc, 0));
      iq2_values<T>({points.second[i]}, shr(points.signs[i], 2), y, 16, chain_of(acc, 1));
      const I s = shr(word<Q>(record, 2 * (g + i) + 1), 28);
      const F scale = mul(d, pick_float(s, kHalfSteps.at));
      KT_TOKENS total[t] = add_dot(total[t], acc_sum(acc, t), y[t], scale);
    }
  });
}

KT_INLINE void order_iq2(const ActBlock* from, int64_t blocks, ActBlock* to) {
  for (int64_t b = 0; b < blocks; ++b) {
    order_block(from[b], kIq2Order, to[b]);
    for (int32_t& sum : to[b].sum) sum *= -kIq2Offset;
  }
}
KT_INLINE void order_activations(quant::IQ2_XS, const ActBlock* from, int64_t n, ActBlock* to) {
  order_iq2(from, n, to);
}
KT_INLINE void order_activations(quant::IQ2_S, const ActBlock* from, int64_t n, ActBlock* to) {
  order_iq2(from, n, to);
}

// total += a record of IQ2_XS or IQ2_S, which have a scale for 16 values: a nibble, from word
// `scales` on. indices(g, signs) gives group g's, and the signs of its points.
template <class Q, int T, int n, class IndicesOf>
KT_INLINE void iq2_record(const uint8_t* record, int scales, const Iq2Bytes<n>& book,
                          const ActBlock* const* x, F* total, IndicesOf indices) {
  F sum[T];
  KT_TOKENS sum[t] = zero_f();
  const auto find = [&](int g) __attribute__((always_inline)) {
    Iq2Points points;
    const Indices index[2] = {indices(g, points.signs[0]), indices(g + 1, points.signs[1])};
    find_bytes<n, 2>(book.first, index, points.first);
    find_bytes<n, 2>(book.second, index, points.second);
    return points;
  };
  pairs_of_groups(find, [&](int g, const Iq2Points& points) __attribute__((always_inline)) {
    const I s = shr(word<Q>(record, scales + g / 4), g % 4 * 8);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      // Points 0 and 1, then 2 and 3: first bytes in the lower half of a lane, second bytes in the
      // upper, and signs of values 2, 3, 6 and 7 there where those of 0, 1, 4 and 5 are.
      const I a = {points.first[i]}, b = {points.second[i]};
      const I signs = points.signs[i], above = shr(signs, 2);
      const I codes[2] = {low_halves(a, b), high_halves(a, b)};
      const I both[2] = {low_halves(signs, above), high_halves(signs, above)};
      const ActBlock* y[T];
      Acc acc[2][T];
      KT_TOKENS y[t] = x[t] + g + i;
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        KT_TOKENS acc[half][t] = acc_from(y[t]->sum[half]);
        iq2_values<T>(codes[half], both[half], y, 16 * half, acc[half]);
      }
      const F first = pick_float(shr(s, 8 * i), kHalfSteps.at);
      const F second = pick_float(shr(s, 8 * i + 4), kHalfSteps.at);
      KT_TOKENS sum[t] = add_two_dots(sum[t], acc_sum(acc[0][t]), first, acc_sum(acc[1][t]), second,
                                      y[t]);
    }
  });
  const F d = mul(head_halves(record), set_f(kIq2Factor));
  KT_TOKENS total[t] = fma(sum[t], d, total[t]);
}

template <int T>
KT_INLINE void gemv_record(quant::IQ2_XS, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ2_XS;
  const auto indices = [&](int g, I& signs) __attribute__((always_inline)) -> Indices {
    const I v = take_slow_line(quant::r16_word<Q>(record, 2 * g));
    const I w = take_slow_line(quant::r16_word<Q>(record, 2 * g + 1));
    const I above = pick_of_two<1, 3, 5, 7>(v, w);  // bit 8 of the index, seven signs
    const I low = pick_of_two<0, 2, 4, 6>(v, w);
    signs = find_in_128(kEvenSigns.eight, shr(above, 1));
    return {low.v, {_mm512_movepi8_mask(low.v), any_set(above, 0x01010101)}};
  };
  iq2_record<Q, T>(record, 16, kIq2xsBytes, x, total, indices);
}

template <int T>
KT_INLINE void gemv_record(quant::IQ2_S, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ2_S;
  const auto indices = [&](int g, I& signs) __attribute__((always_inline)) -> Indices {
    // Bits 8 and 9 of point p are bits 2 p and 2 p + 1 of one byte.
    const I above = bit_fields<0, 2, 4, 6>(shr(word<Q>(record, 16 + g / 4), g % 4 * 8));
    const I low = take_slow_line(quant::r16_word<Q>(record, g));
    signs = take_slow_line(quant::r16_word<Q>(record, 8 + g));
    return {low.v,
            {_mm512_movepi8_mask(low.v), any_set(above, 0x01010101), any_set(above, 0x02020202)}};
  };
  iq2_record<Q, T>(record, 18, kIq2sBytes, x, total, indices);
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
