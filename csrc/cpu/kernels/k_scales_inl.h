// Six-bit scales of K-quants as bytes, of sixteen rows at a time.
#pragma once

#include "cpu/kernels/halves_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

#if defined(KT_HAS_GEMV)

// Q4_K and Q5_K (quant/k_scales.h): those of groups 0..3 and of groups 4..7.
struct KScales {
  I scale[2], min[2];
};

template <class Q>
KT_INLINE KScales k_scales(const uint8_t* record) {
  const I s = word<Q>(record, 1), t = word<Q>(record, 2), both = word<Q>(record, 3);
  const I six = bytes_of(63), four = bytes_of(15), top = bytes_of(0x30);
  return {{band(s, six), bor(band(both, four), band(shr(s, 2), top))},
          {band(t, six), bor(band(shr(both, 4), four), band(shr(t, 2), top))}};
}

// Q3_K: four groups a word; low nibbles, and two bits of the last word.
KT_INLINE void six_bit_scales(const uint8_t* record, I (&six)[4]) {
  using Q = quant::Q3_K;
  const I low[2] = {word<Q>(record, 24), word<Q>(record, 25)}, high = word<Q>(record, 26);
  const I nibble = bytes_of(0x0F), two = bytes_of(0x30);
  six[0] = bor(band(low[0], nibble), band(shl(high, 4), two));
  six[1] = bor(band(low[1], nibble), band(shl(high, 2), two));
  six[2] = bor(band(shr(low[0], 4), nibble), band(high, two));
  six[3] = bor(band(shr(low[1], 4), nibble), band(shr(high, 2), two));
}

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
