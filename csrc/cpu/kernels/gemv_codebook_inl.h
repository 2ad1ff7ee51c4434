// gemv_record of IQ2 and IQ3, two indices in a lane; x points to reordered activations
// (codebook_inl.h).
#pragma once

#include "cpu/kernels/points_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

#if defined(KT_HAS_GEMV)

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
    I points[2] = {
        bor(bor(first_indices(w), band(shl(above, 8), low_two)), band(shl(above, 22), high_two)),
        bor(bor(second_indices(w), band(shl(above, 4), low_two)), band(shl(above, 18), high_two))};
    for (I& pair : points) pair = look_up(kIq2sBook, pair);
    const I s = load_i(quant::r16_word<Q>(record, 18 + g / 4));
    const F scale[2] = {iq2_scale(d, s, g % 4 * 8), iq2_scale(d, s, g % 4 * 8 + 4)};
    const ActBlock* y[T];
    KT_TOKENS y[t] = x[t] + g;
    iq2_halves<T>(points, signs, scale, y, total);
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
      iq3_quad<T>(even_bytes(a, b), odd_bytes(a, b), kIq3xxsSigned.at, Q::kOffset,
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
      iq3_quad<T>(even_bytes(a, b), odd_bytes(a, b), kIq3sSigned.at, Q::kOffset,
                  half == 0 ? first_signs(signs) : second_signs(signs), y, 16 * half, acc);
    }
    const I s = band(shr(load_i(quant::r16_word<Q>(record, 26)), g * 4), set_i(15));
    const F scale = mul(d, to_float(add(add(s, s), set_i(1))));
    KT_TOKENS total[t] = add_dot(total[t], acc_sum(acc[t]), y[t], scale);
  }
}

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
