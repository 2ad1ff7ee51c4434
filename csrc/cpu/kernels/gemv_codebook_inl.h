// gemv_record of the codebook formats; x points to reordered activations (codebook_inl.h).
#pragma once

#include "cpu/kernels/codebook_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

#if defined(KT_HAS_GEMV)

// Bytes 0 and 1, or 2 and 3, of every lane as 16-bit indices.
KT_INLINE I first_indices(I w) { return pick<0, -1, 1, -1>(w); }
KT_INLINE I second_indices(I w) { return pick<2, -1, 3, -1>(w); }
KT_INLINE I first_signs(I w) { return pick<0, 0, 1, 1>(w); }
KT_INLINE I second_signs(I w) { return pick<2, 2, 3, 3>(w); }

// Levels of IQ2, by code and by code << 2, with the offset.
struct Iq2Levels {
  alignas(16) uint8_t at[16];
  constexpr Iq2Levels() : at() {
    for (int c = 0; c < 3; ++c) at[c] = at[4 * c] = (uint8_t)(43 + quant::kIq2Levels[c]);
  }
};
constexpr Iq2Levels kIq2Signed;

// a += two points of every row (their codes in `points`, signs in `signs`) times 16 values from `at`.
template <int T>
KT_INLINE void iq2_pair(I points, I signs, const ActBlock* const* y, int at, Acc* a) {
  const I above = shr(points, 4);
  const I index[4] = {band(points, bytes_of(3)), band(points, bytes_of(12)),
                      band(above, bytes_of(3)), band(above, bytes_of(12))};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const I u = signed_levels(index[i], kIq2Signed.at, 43, signs, i);
    KT_TOKENS mac(a[t], u, y[t], at + 4 * i);
  }
}

// total += the same for two groups of 16 with a scale each.
template <int T>
KT_INLINE void iq2_halves(const I (&points)[2], I signs, const F (&scale)[2],
                          const ActBlock* const* y, F* total) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    Acc a[T];
    KT_TOKENS a[t] = acc_from(-43 * y[t]->sum[half]);
    iq2_pair<T>(points[half], half == 0 ? first_signs(signs) : second_signs(signs), y, 16 * half,
                a);
    KT_TOKENS total[t] = add_dot(total[t], acc_sum(a[t]), y[t], scale[half]);
  }
}

// d * (s + 1/2) / 4 with s in bits `bit` to `bit` + 3 of w.
KT_INLINE F iq2_scale(F d, I w, int bit) {
  const F s = to_float(band(shr(w, bit), set_i(15)));
  return mul(mul(d, add(s, set_f(0.5f))), set_f(0.25f));
}

template <int T>
KT_INLINE void gemv_record(quant::IQ2_XXS, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ2_XXS;
  const F d = head_halves(record);
#pragma GCC unroll 1
  for (int g = 0; g < 8; ++g) {
    const I w = take_line<T>(quant::r16_word<Q>(record, 2 * g));
    const I more = take_line<T>(quant::r16_word<Q>(record, 2 * g + 1));
    const I a = look_up(kIq2xxsBook, first_indices(w)), b = look_up(kIq2xxsBook, second_indices(w));
    const I signs = even_signs(seven_bit_fields(more));
    const ActBlock* y[T];
    Acc acc[T];
    KT_TOKENS {
      y[t] = x[t] + g;
      acc[t] = acc_from(-43 * sum32(y[t]));
    }
    iq2_pair<T>(a, first_signs(signs), y, 0, acc);
    iq2_pair<T>(b, second_signs(signs), y, 16, acc);
    const F scale = iq2_scale(d, more, 28);
    KT_TOKENS total[t] = add_dot(total[t], acc_sum(acc[t]), y[t], scale);
  }
}

template <int T>
KT_INLINE void gemv_record(quant::IQ2_XS, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ2_XS;
  const F d = head_halves(record);
#pragma GCC unroll 1
  for (int g = 0; g < 8; ++g) {
    const I v = take_line<T>(quant::r16_word<Q>(record, 2 * g));
    const I w = take_line<T>(quant::r16_word<Q>(record, 2 * g + 1));
    I points[2] = {band(v, set_i(0x01FF01FF)), band(w, set_i(0x01FF01FF))};
    for (I& pair : points) pair = look_up(kIq2xsBook, pair);
    // Signs stand above the indices, by two in a lane; one after another by bytes, then.
    const I both = odd_bytes(v, w);  // of points 0, 2, 1, 3
    const I signs = even_signs(band(shr(pick<0, 2, 1, 3>(both), 1), bytes_of(0x7F)));
    const I s = load_i(quant::r16_word<Q>(record, 16 + g / 4));
    const F scale[2] = {iq2_scale(d, s, g % 4 * 8), iq2_scale(d, s, g % 4 * 8 + 4)};
    const ActBlock* y[T];
    KT_TOKENS y[t] = x[t] + g;
    iq2_halves<T>(points, signs, scale, y, total);
  }
}

template <int T>
KT_INLINE void gemv_record(quant::IQ2_S, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ2_S;
  const F d = head_halves(record);
#pragma GCC unroll 1
  for (int g = 0; g < 8; ++g) {
    const I w = take_line<T>(quant::r16_word<Q>(record, g));
    const I signs = take_line<T>(quant::r16_word<Q>(record, 8 + g));
    const I above = shr(load_i(quant::r16_word<Q>(record, 16 + g / 4)), g % 4 * 8);
    const I low_two = set_i(0x300), high_two = set_i(0x3000000);
    I points[2] = {bor(bor(first_indices(w), band(shl(above, 8), low_two)),
                       band(shl(above, 22), high_two)),
                   bor(bor(second_indices(w), band(shl(above, 4), low_two)),
                       band(shl(above, 18), high_two))};
    for (I& pair : points) pair = look_up(kIq2sBook, pair);
    const I s = load_i(quant::r16_word<Q>(record, 18 + g / 4));
    const F scale[2] = {iq2_scale(d, s, g % 4 * 8), iq2_scale(d, s, g % 4 * 8 + 4)};
    const ActBlock* y[T];
    KT_TOKENS y[t] = x[t] + g;
    iq2_halves<T>(points, signs, scale, y, total);
  }
}

// Levels of IQ3 with the offset; index 15 does not occur.
template <class Q>
struct Iq3Levels {
  alignas(16) uint8_t at[16];
  constexpr explicit Iq3Levels(const uint8_t* levels) : at() {
    for (int c = 0; c < 8; ++c) at[c] = (uint8_t)(Q::kOffset + levels[c]);
  }
};
constexpr Iq3Levels<quant::IQ3_XXS> kIq3xxsSigned(quant::kIq3xxsLevels);
constexpr Iq3Levels<quant::IQ3_S> kIq3sSigned(quant::kIq3sLevels);

// acc += four points of four values of every row, of which a has 0 and 2, b 1 and 3.
template <int T>
KT_INLINE void iq3_quad(I a, I b, const uint8_t* levels, int offset, I signs,
                        const ActBlock* const* y, int at, Acc* acc) {
  const I low = even_bytes(a, b), high = odd_bytes(a, b), nibble = bytes_of(0x0F);
  const I index[4] = {band(low, nibble), band(shr(low, 4), nibble), band(high, nibble),
                      band(shr(high, 4), nibble)};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const I u = signed_levels(index[i], levels, offset, signs, i);
    KT_TOKENS mac(acc[t], u, y[t], at + 4 * i);
  }
}

template <int T>
KT_INLINE void gemv_record(quant::IQ3_XXS, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ3_XXS;
  const F d = head_halves(record);
  const I byte = set_i(0x00FF00FF);
#pragma GCC unroll 1
  for (int g = 0; g < 8; ++g) {
    const I more = take_line<T>(quant::r16_word<Q>(record, 16 + g));
    const I signs = even_signs(seven_bit_fields(more));
    const ActBlock* y[T];
    Acc acc[T];
    KT_TOKENS {
      y[t] = x[t] + g;
      acc[t] = acc_from(-Q::kOffset * sum32(y[t]));
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const I w = take_line<T>(quant::r16_word<Q>(record, 2 * g + half));
      const I a = look_up(kIq3xxsBook, band(w, byte));
      const I b = look_up(kIq3xxsBook, band(shr(w, 8), byte));
      iq3_quad<T>(a, b, kIq3xxsSigned.at, Q::kOffset,
                  half == 0 ? first_signs(signs) : second_signs(signs), y, 16 * half, acc);
    }
    const F s = to_float(shr(more, 28));
    const F scale = mul(mul(d, add(s, set_f(0.5f))), set_f(0.5f));
    KT_TOKENS total[t] = add_dot(total[t], acc_sum(acc[t]), y[t], scale);
  }
}

template <int T>
KT_INLINE void gemv_record(quant::IQ3_S, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ3_S;
  const F d = head_halves(record);
  const I byte = set_i(0x00FF00FF), low_one = set_i(0x100), high_one = set_i(0x1000000);
#pragma GCC unroll 1
  for (int g = 0; g < 8; ++g) {
    const I signs = take_line<T>(quant::r16_word<Q>(record, 18 + g));
    const I above = shr(load_i(quant::r16_word<Q>(record, 16 + g / 4)), g % 4 * 8);
    const ActBlock* y[T];
    Acc acc[T];
    KT_TOKENS {
      y[t] = x[t] + g;
      acc[t] = acc_from(-Q::kOffset * sum32(y[t]));
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const I w = take_line<T>(quant::r16_word<Q>(record, 2 * g + half));
      const I bits = shr(above, 4 * half);
      I a = bor(bor(band(w, byte), band(shl(bits, 8), low_one)), band(shl(bits, 22), high_one));
      I b = bor(bor(band(shr(w, 8), byte), band(shl(bits, 7), low_one)),
                band(shl(bits, 21), high_one));
      a = look_up(kIq3sBook, a);
      b = look_up(kIq3sBook, b);
      iq3_quad<T>(a, b, kIq3sSigned.at, Q::kOffset,
                  half == 0 ? first_signs(signs) : second_signs(signs), y, 16 * half, acc);
    }
    const I s = band(shr(load_i(quant::r16_word<Q>(record, 26)), g * 4), set_i(15));
    const F scale = mul(d, to_float(add(add(s, s), set_i(1))));
    KT_TOKENS total[t] = add_dot(total[t], acc_sum(acc[t]), y[t], scale);
  }
}

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
KT_INLINE I iq1_delta(I w, I bits) {
  return take_from_where(bytes_of(2), w, bits, bytes_of(2));
}

template <int T>
KT_INLINE void gemv_record(quant::IQ1_S, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ1_S;
  const F d = head_halves(record);
  const I low_three = set_i(0x700), high_three = set_i(0x7000000);
#pragma GCC unroll 1
  for (int g = 0; g < 8; ++g) {
    const I w = take_line<T>(quant::r16_word<Q>(record, g));
    const I more = shr(load_i(quant::r16_word<Q>(record, 8 + g / 2)), g % 2 * 16);
    I a = bor(bor(first_indices(w), band(shl(more, 8), low_three)),
              band(shl(more, 21), high_three));
    I b = bor(bor(second_indices(w), band(shl(more, 2), low_three)),
              band(shl(more, 15), high_three));
    a = look_up(kIq1Book, a);
    b = look_up(kIq1Book, b);
    const I delta = iq1_delta(pick<1, 1, 1, 1>(more), bytes_of(0x80));
    const ActBlock* y[T];
    Acc acc[T];
    KT_TOKENS {
      y[t] = x[t] + g;
      acc[t] = acc_from(-Q::kOffset * sum32(y[t]));
    }
    iq1_pair<T>(a, delta, y, 0, acc);
    iq1_pair<T>(b, delta, y, 16, acc);
    const I s = band(shr(more, 12), set_i(7));
    const F scale = mul(mul(d, to_float(add(add(s, s), set_i(1)))), set_f(0.125f));
    KT_TOKENS total[t] = add_dot(total[t], acc_sum(acc[t]), y[t], scale);
  }
}

template <int T>
KT_INLINE void gemv_record(quant::IQ1_M, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ1_M;
  const I s0 = load_i(quant::r16_word<Q>(record, 12)), s1 = load_i(quant::r16_word<Q>(record, 13));
  const F d = half_lanes(bor(bor(band(shr(s0, 12), set_i(0xF)), band(shr(s0, 24), set_i(0xF0))),
                             bor(band(shr(s1, 4), set_i(0xF00)), band(shr(s1, 16), set_i(0xF000)))));
  const I low_three = set_i(0x700), high_three = set_i(0x7000000);
  const I bits = set_i((int32_t)0x80800808u);
#pragma GCC unroll 1
  for (int g = 0; g < 8; ++g) {
    const I w = take_line<T>(quant::r16_word<Q>(record, g));
    const I more = shr(load_i(quant::r16_word<Q>(record, 8 + g / 2)), g % 2 * 16);
    I points[2] = {bor(bor(first_indices(w), band(shl(more, 8), low_three)),
                       band(shl(more, 20), high_three)),
                   bor(bor(second_indices(w), band(more, low_three)),
                       band(shl(more, 12), high_three))};
    for (I& pair : points) pair = look_up(kIq1Book, pair);
    const I scales = shr(load_i(quant::r16_word<Q>(record, 12 + g / 4)), g / 2 % 2 * 16 + g % 2 * 6);
    const ActBlock* y[T];
    KT_TOKENS y[t] = x[t] + g;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      Acc acc[T];
      KT_TOKENS acc[t] = acc_from(-Q::kOffset * y[t]->sum[half]);
      const I delta = iq1_delta(half == 0 ? pick<0, 0, 0, 0>(more) : pick<1, 1, 1, 1>(more), bits);
      iq1_pair<T>(points[half], delta, y, 16 * half, acc);
      const I s = band(shr(scales, 3 * half), set_i(7));
      const F scale = mul(mul(d, to_float(add(add(s, s), set_i(1)))), set_f(0.125f));
      KT_TOKENS total[t] = add_dot(total[t], acc_sum(acc[t]), y[t], scale);
    }
  }
}

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
