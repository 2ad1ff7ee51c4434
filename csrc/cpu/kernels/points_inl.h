// Products with points of the codebooks of IQ2 and IQ3 that were looked up, signs and scales
// included; the activations are reordered (codebook_inl.h).
#pragma once

#include "cpu/kernels/codebook_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

#if defined(KT_HAS_GEMV)

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

// a += two points of every row (their codes in `points`, signs in `signs`) times 16 values from
// `at`.
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

// acc += four points of four values of every row: byte p of low has values 0 and 1 of point p, byte
// p of high 2 and 3, a nibble each.
template <int T>
KT_INLINE void iq3_quad(I low, I high, const uint8_t* levels, int offset, I signs,
                        const ActBlock* const* y, int at, Acc* acc) {
  const I nibble = bytes_of(0x0F);
  const I index[4] = {band(low, nibble), band(shr(low, 4), nibble), band(high, nibble),
                      band(shr(high, 4), nibble)};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const I u = signed_levels(index[i], levels, offset, signs, i);
    KT_TOKENS mac(acc[t], u, y[t], at + 4 * i);
  }
}

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
