// Eight 4-bit codes of a word -> four pairs (q - 8), exact, without integer-to-float conversions:
// a code in the low bits of a float's mantissa is that float plus a constant.
//
// Pair p holds code p in its low half and code p + 4 in its high half (pack.cpp stores them so).
#pragma once

#include "cuda/common/device.h"

namespace kt::cuda {

template <class T>
KT_DEVICE void int4_pairs(uint32_t word, uint32_t* pairs);

// f16: 0x6400 is 1024, whose unit is 1; codes at bits 4..7 come out as 1024 + 16 q.
template <>
KT_DEVICE void int4_pairs<half_t>(uint32_t word, uint32_t* pairs) {
  constexpr int kAndOr = 0xEA;  // (a & b) | c
  const uint32_t high = word >> 8;
  pairs[0] = sub2<half_t>(lop3<kAndOr>(word, 0x000F000Fu, 0x64006400u), 0x64086408u);  // - 1032
  pairs[1] = fma2<half_t>(lop3<kAndOr>(word, 0x00F000F0u, 0x64006400u), 0x2C002C00u,   // / 16
                          0xD480D480u);                                                // - 72
  pairs[2] = sub2<half_t>(lop3<kAndOr>(high, 0x000F000Fu, 0x64006400u), 0x64086408u);
  pairs[3] = fma2<half_t>(lop3<kAndOr>(high, 0x00F000F0u, 0x64006400u), 0x2C002C00u, 0xD480D480u);
}

// bf16: 0x4300 is 128, whose unit is 1; there is room for one code only.
template <>
KT_DEVICE void int4_pairs<bf16_t>(uint32_t word, uint32_t* pairs) {
  constexpr int kAndOr = 0xEA;
  for (int p = 0; p < 4; ++p)
    pairs[p] = sub2<bf16_t>(lop3<kAndOr>(word >> 4 * p, 0x000F000Fu, 0x43004300u),
                            0x43084308u);  // - 136
}

}  // namespace kt::cuda
