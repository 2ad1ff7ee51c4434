// Scales of the formats IQ1, IQ2 and IQ3, of sixteen rows at a time.
#pragma once

#include "cpu/kernels/unpack_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

KT_INLINE I bits_of(I w, int first, int mask) { return band(shr(w, first), set_i(mask)); }

// IQ2, IQ3_XXS: d * (s + 1/2) * factor
KT_INLINE F half_step_scale(F d, I s, float factor) {
  return mul(mul(d, add(to_float(s), set_f(0.5f))), set_f(factor));
}
constexpr float kIq2Factor = 0.25f, kIq3xxsFactor = 0.5f;

// IQ3_S: d * (2 s + 1)
KT_INLINE F odd_scale(F d, I s) { return mul(d, to_float(add(add(s, s), set_i(1)))); }

// IQ1: d * (2 s + 1) / 8
KT_INLINE F iq1_scale(F d, I s) { return mul(odd_scale(d, s), set_f(0.125f)); }

// IQ1_M's d: its nibbles stand above the scales, one in each half of two words.
KT_INLINE F iq1_m_head(const uint8_t* record) {
  const I s = word<quant::IQ1_M>(record, 12), t = word<quant::IQ1_M>(record, 13);
  return half_lanes(bor(bor(band(shr(s, 12), set_i(0xF)), band(shr(s, 24), set_i(0xF0))),
                        bor(band(shr(t, 4), set_i(0xF00)), band(shr(t, 16), set_i(0xF000)))));
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
