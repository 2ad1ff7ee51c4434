// Products with points of the codebooks of IQ2 and IQ3 that were looked up, signs and scales
// included; the activations are reordered (codebook_inl.h).
#pragma once

#include "cpu/kernels/codebook_inl.h"
#include "cpu/kernels/iq_scales_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

#if defined(KT_HAS_GEMV)

KT_INLINE I first_signs(I w) { return pick<0, 0, 1, 1>(w); }
KT_INLINE I second_signs(I w) { return pick<2, 2, 3, 3>(w); }

constexpr int kIq2Offset = quant::IQ2_XXS::kOffset;
static_assert(quant::IQ2_XS::kOffset == kIq2Offset && quant::IQ2_S::kOffset == kIq2Offset);

// Levels of IQ2, by code and by code << 2, with the offset.
struct Iq2Levels {
  alignas(16) uint8_t at[16];
  constexpr Iq2Levels() : at() {
    for (int c = 0; c < 3; ++c) at[c] = at[4 * c] = (uint8_t)(kIq2Offset + quant::kIq2Levels[c]);
  }
};
constexpr Iq2Levels kIq2Signed;

// a += two points of every row (their codes in `points`, signs in `signs`) times 16 values from
// `at`.
template <int T>
KT_INLINE void iq2_pair(I points, I signs, const ActBlock* const* y, int at, Acc* a) {
  const I above = shr(points, 4);
  const I index[4] = {band(points, bytes_of(3)), band(points, bytes_of(12)),
                      band(above, bytes_of(3)), band(above, bytes_of(12))};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const I u = signed_levels(index[i], kIq2Signed.at, kIq2Offset, signs, i);
    KT_TOKENS mac(a[t], u, y[t], at + 4 * i);
  }
}

// total += a record of IQ2_XXS. look_up(g, points) gives the points of 32 values, two in a lane.
template <int T, class LookUp>
KT_INLINE void iq2_xxs_record(const uint8_t* record, const ActBlock* const* x, F* total,
                              LookUp look_up) {
  const F d = head_halves(record);
#pragma GCC unroll 1
  for (int g = 0; g < 8; ++g) {
    I points[2];
    look_up(g, points);
    const I more = take_line<T>(quant::r16_word<quant::IQ2_XXS>(record, 2 * g + 1));
    const I signs = even_signs(seven_bit_fields(more));
    const ActBlock* y[T];
    Acc acc[T];
    KT_TOKENS {
      y[t] = x[t] + g;
      acc[t] = acc_from(-kIq2Offset * sum32(y[t]));
    }
    iq2_pair<T>(points[0], first_signs(signs), y, 0, acc);
    iq2_pair<T>(points[1], second_signs(signs), y, 16, acc);
    const F scale = half_step_scale(d, shr(more, 28), kIq2Factor);
    KT_TOKENS total[t] = add_dot(total[t], acc_sum(acc[t]), y[t], scale);
  }
}

// total += a record of IQ2_XS or IQ2_S, which have a scale for 16 values: a nibble, from word
// `scales` on. look_up(g, points) gives the points of 32 values and returns their signs.
template <class Q, int T, class LookUp>
KT_INLINE void iq2_record(const uint8_t* record, int scales, const ActBlock* const* x, F* total,
                          LookUp look_up) {
  const F d = head_halves(record);
#if defined(KT_ISA_AVX512)
  F sum[T];
  KT_TOKENS sum[t] = zero_f();
#endif
#pragma GCC unroll 1
  for (int g = 0; g < 8; ++g) {
    I points[2];
    const I signs = look_up(g, points);
    const ActBlock* y[T];
    I dot[2][T];
    KT_TOKENS y[t] = x[t] + g;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      Acc acc[T];
      KT_TOKENS acc[t] = acc_from(-kIq2Offset * y[t]->sum[half]);
      iq2_pair<T>(points[half], half == 0 ? first_signs(signs) : second_signs(signs), y, 16 * half,
                  acc);
      KT_TOKENS dot[half][t] = acc_sum(acc[t]);
    }
    const I s = word<Q>(record, scales + g / 4);
    const I first = bits_of(s, g % 4 * 8, 15), second = bits_of(s, g % 4 * 8 + 4, 15);
#if defined(KT_ISA_AVX512)
    const F half_step = set_f(0.5f);
    KT_TOKENS sum[t] = add_two_dots(sum[t], dot[0][t], add(to_float(first), half_step), dot[1][t],
                                    add(to_float(second), half_step), y[t]);
#else
    KT_TOKENS {
      total[t] = add_dot(total[t], dot[0][t], y[t], half_step_scale(d, first, kIq2Factor));
      total[t] = add_dot(total[t], dot[1][t], y[t], half_step_scale(d, second, kIq2Factor));
    }
#endif
  }
#if defined(KT_ISA_AVX512)
  KT_TOKENS total[t] = fma(sum[t], mul(d, set_f(kIq2Factor)), total[t]);
#endif
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

// Four points of four values of every row: byte p of low has values 0 and 1 of point p, byte p of
// high 2 and 3, a nibble each.
struct Iq3Points {
  I low, high;
};

// acc += these times 16 values from `at`.
template <int T>
KT_INLINE void iq3_quad(Iq3Points points, const uint8_t* levels, int offset, I signs,
                        const ActBlock* const* y, int at, Acc* acc) {
  const I nibble = bytes_of(0x0F);
  const I index[4] = {band(points.low, nibble), band(shr(points.low, 4), nibble),
                      band(points.high, nibble), band(shr(points.high, 4), nibble)};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const I u = signed_levels(index[i], levels, offset, signs, i);
    KT_TOKENS mac(acc[t], u, y[t], at + 4 * i);
  }
}

// dot = the products of a group of 32 values. look_up(line, half) gives the points of half of them,
// whose indices (bits 0 to 7) are in `line`.
template <class Q, int T, class LookUp>
KT_INLINE void iq3_group(const uint8_t* lines, const uint8_t* levels, I signs,
                         const ActBlock* const* y, I* dot, LookUp look_up) {
  Acc acc[T];
  KT_TOKENS acc[t] = acc_from(-Q::kOffset * sum32(y[t]));
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const Iq3Points points = look_up(take_line<T>(lines + 64 * half), half);
    iq3_quad<T>(points, levels, Q::kOffset, half == 0 ? first_signs(signs) : second_signs(signs), y,
                16 * half, acc);
  }
  KT_TOKENS dot[t] = acc_sum(acc[t]);
}

// total += a record of IQ3_XXS. look_up(line) as above.
template <int T, class LookUp>
KT_INLINE void iq3_xxs_record(const uint8_t* record, const ActBlock* const* x, F* total,
                              LookUp look_up) {
  using Q = quant::IQ3_XXS;
  const F d = head_halves(record);
#pragma GCC unroll 1
  for (int g = 0; g < 8; ++g) {
    const I more = take_line<T>(quant::r16_word<Q>(record, 16 + g));
    const ActBlock* y[T];
    I dot[T];
    KT_TOKENS y[t] = x[t] + g;
    iq3_group<Q, T>(quant::r16_word<Q>(record, 2 * g), kIq3xxsSigned.at,
                    even_signs(seven_bit_fields(more)), y, dot,
                    [&](I line, int) __attribute__((always_inline)) { return look_up(line); });
    const F scale = half_step_scale(d, shr(more, 28), kIq3xxsFactor);
    KT_TOKENS total[t] = add_dot(total[t], dot[t], y[t], scale);
  }
}

// total += a record of IQ3_S. look_up(line, bits, half) as above; bit 8 of the index of a group's
// point p is bit p of `bits`, above which are other groups'.
template <int T, class LookUp>
KT_INLINE void iq3_s_record(const uint8_t* record, const ActBlock* const* x, F* total,
                            LookUp look_up) {
  using Q = quant::IQ3_S;
  const F d = head_halves(record);
#pragma GCC unroll 1
  for (int g = 0; g < 8; ++g) {
    const I signs = take_line<T>(quant::r16_word<Q>(record, 18 + g));
    const I bits = shr(word<Q>(record, 16 + g / 4), g % 4 * 8);
    const ActBlock* y[T];
    I dot[T];
    KT_TOKENS y[t] = x[t] + g;
    iq3_group<Q, T>(quant::r16_word<Q>(record, 2 * g), kIq3sSigned.at, signs, y, dot,
                    [&](I line, int half) __attribute__((always_inline)) {
                      return look_up(line, bits, half);
                    });
    const F scale = odd_scale(d, bits_of(word<Q>(record, 26), g * 4, 15));
    KT_TOKENS total[t] = add_dot(total[t], dot[t], y[t], scale);
  }
}

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
