// Dot products with activations in two int8 halves (Rounding::kExact), as the kernels for few tokens
// take them: gemv_k_inl.h and gemv_blocks_inl.h, one gemv_record per format.
//
// What the multipliers ask for: fields that need no shift stay where they are in their byte, as a
// multiple by a power of two that the float scale takes back; an offset is the value that the
// accumulator begins with.
//
// Bounds: bytes in place are at most 255, |q| <= 32512, groups at most 32 values: sums stay below
// 255 * 32512 * 32 < 2^28.
#pragma once

#include "cpu/kernels/activations_inl.h"
#include "cpu/kernels/unpack_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

#if defined(KT_ISA_AVX512)

// Dot products of one group of values with one token's two halves.
struct Acc {
  __m512i hi, lo;
};

KT_INLINE Acc acc_from(int32_t start) { return {_mm512_setzero_si512(), _mm512_set1_epi32(start)}; }

// += bytes . the four values at `at` of a block. As assembly, because GCC 12 copies the accumulators
// of the intrinsic back and forth and does not fold the broadcast, which costs a third of the speed.
KT_INLINE void mac(Acc& acc, I bytes, const ActBlock* x, int at) {
  typedef int32_t __attribute__((may_alias)) Four;
  asm("vpdpbusd %2%{1to16%}, %1, %0"
      : "+v"(acc.hi)
      : "v"(bytes.v), "m"(*(const Four*)(x->hi + at)));
  asm("vpdpbusd %2%{1to16%}, %1, %0"
      : "+v"(acc.lo)
      : "v"(bytes.v), "m"(*(const Four*)(x->lo + at)));
}

KT_INLINE I acc_sum(const Acc& acc) {
  return {_mm512_add_epi32(_mm512_slli_epi32(acc.hi, 8), acc.lo)};
}

// The bits of a where mask is set, those of b elsewhere.
KT_INLINE I select(I mask, I a, I b) {
  return {_mm512_ternarylogic_epi32(mask.v, a.v, b.v, 0xCA)};
}
KT_INLINE I rotate(I a, I left) { return {_mm512_rolv_epi32(a.v, left.v)}; }

#define KT_TOKENS _Pragma("GCC unroll 8") for (int t = 0; t < T; ++t)

// One line of the weights. The core runs ahead of one token's products far enough by itself, but not
// of several tokens': then lines are asked for 4 KiB ahead (for one token that costs up to 15 %).
template <int T>
KT_INLINE I take_line(const uint8_t* p) {
  if constexpr (T > 1) __builtin_prefetch(p + 4096, 0, 3);
  return load_i(p);
}

KT_INLINE I bytes_of(int byte) { return set_i((int32_t)(0x01010101u * (uint32_t)byte)); }

// total += dot * x.scale * scale
KT_INLINE F add_dot(F total, I dot, const ActBlock* x, F scale) {
  return fma(mul(to_float(dot), set_f(x->scale)), scale, total);
}

KT_INLINE int32_t sum32(const ActBlock* x) { return x->sum[0] + x->sum[1]; }

// total += min * sum of the values of a group of 32
KT_INLINE F add_min(F total, const ActBlock* x, F min) {
  return fma(min, set_f(x->scaled_sum), total);
}

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
