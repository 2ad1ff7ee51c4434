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

#if defined(KT_ISA_AVX512) || defined(KT_ISA_AVX2)

// Instruction sets that have kernels of their own for few tokens.
#define KT_HAS_GEMV 1

KT_INLINE I bytes_of(int byte) { return set_i((int32_t)(0x01010101u * (uint32_t)byte)); }

#endif

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
KT_INLINE I add_bytes(I a, I b) { return {_mm512_add_epi8(a.v, b.v)}; }
KT_INLINE I average_bytes(I a, I b) { return {_mm512_avg_epu8(a.v, b.v)}; }

// a + b in the bytes where all bits of `bits` are set in w.
KT_INLINE I add_where(I a, I w, I bits, I b) {
  return {_mm512_mask_add_epi8(a.v, _mm512_test_epi8_mask(w.v, bits.v), a.v, b.v)};
}
// b - a in the bytes where all bits of `bits` are set in w, and a elsewhere.
KT_INLINE I take_from_where(I a, I w, I bits, I b) {
  return {_mm512_mask_sub_epi8(a.v, _mm512_test_epi8_mask(w.v, bits.v), b.v, a.v)};
}
// Of four lanes at a time, the bytes that `control` names.
KT_INLINE I shuffle(I w, I control) { return {_mm512_shuffle_epi8(w.v, control.v)}; }
// Sixteen bytes, aligned, for every four lanes.
KT_INLINE I load_lanes(const uint8_t* p) {
  return {_mm512_broadcast_i32x4(_mm_load_si128((const __m128i*)p))};
}
// Sixteen bytes as numbers.
KT_INLINE I load_bytes(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))};
}
KT_INLINE I max(I a, I b) { return {_mm512_max_epi32(a.v, b.v)}; }
KT_INLINE F float_of_bits(I bits) { return {_mm512_castsi512_ps(bits.v)}; }
// a, and zero where it is `value`.
KT_INLINE I without(I a, int32_t value) {
  return {_mm512_maskz_mov_epi32(_mm512_cmpneq_epi32_mask(a.v, _mm512_set1_epi32(value)), a.v)};
}

#elif defined(KT_ISA_AVX2)

// The activations are 16-bit numbers here: bytes are widened, and pairs multiplied and added exactly.
struct Acc {
  I sum;
};

KT_INLINE Acc acc_from(int32_t start) { return {set_i(start)}; }

// Four bytes in every lane, loaded so: as assembly, because GCC 12 makes two of these one load,
// which the vector's lanes then take three instructions each to get.
KT_INLINE __m256i broadcast_four(const void* p) {
  typedef int32_t __attribute__((may_alias)) Four;
  __m256i wide;
  asm("vpbroadcastd %1, %0" : "=x"(wide) : "m"(*(const Four*)p));
  return wide;
}

KT_INLINE void mac(Acc& acc, I bytes, const ActBlock* x, int at) {
  const __m256i low = _mm256_set1_epi16(0xFF);
  // Values 0 and 2, then 1 and 3.
  const __m256i even = broadcast_four(x->q + at), odd = broadcast_four(x->q + at + 2);
  acc.sum.a = dot_pairs(acc.sum.a, _mm256_and_si256(bytes.a, low), even);
  acc.sum.b = dot_pairs(acc.sum.b, _mm256_and_si256(bytes.b, low), even);
  acc.sum.a = dot_pairs(acc.sum.a, _mm256_srli_epi16(bytes.a, 8), odd);
  acc.sum.b = dot_pairs(acc.sum.b, _mm256_srli_epi16(bytes.b, 8), odd);
}

KT_INLINE I acc_sum(const Acc& acc) { return acc.sum; }

KT_INLINE I select(I mask, I a, I b) {
  return {_mm256_or_si256(_mm256_and_si256(mask.a, a.a), _mm256_andnot_si256(mask.a, b.a)),
          _mm256_or_si256(_mm256_and_si256(mask.b, a.b), _mm256_andnot_si256(mask.b, b.b))};
}
KT_INLINE I add_bytes(I a, I b) { return {_mm256_add_epi8(a.a, b.a), _mm256_add_epi8(a.b, b.b)}; }
KT_INLINE I average_bytes(I a, I b) {
  return {_mm256_avg_epu8(a.a, b.a), _mm256_avg_epu8(a.b, b.b)};
}
KT_INLINE I all_set(I w, I bits) {
  return {_mm256_cmpeq_epi8(_mm256_and_si256(w.a, bits.a), bits.a),
          _mm256_cmpeq_epi8(_mm256_and_si256(w.b, bits.b), bits.b)};
}
KT_INLINE I take_from_where(I a, I w, I bits, I b) {
  const I set = all_set(w, bits);
  return {_mm256_blendv_epi8(a.a, _mm256_sub_epi8(b.a, a.a), set.a),
          _mm256_blendv_epi8(a.b, _mm256_sub_epi8(b.b, a.b), set.b)};
}
KT_INLINE I shuffle(I w, I control) {
  return {_mm256_shuffle_epi8(w.a, control.a), _mm256_shuffle_epi8(w.b, control.b)};
}
KT_INLINE I load_lanes(const uint8_t* p) {
  const __m256i wide = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)p));
  return {wide, wide};
}
KT_INLINE I load_bytes(const uint8_t* p) {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)),
          _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))};
}
KT_INLINE I max(I a, I b) { return {_mm256_max_epi32(a.a, b.a), _mm256_max_epi32(a.b, b.b)}; }
KT_INLINE F float_of_bits(I bits) { return {_mm256_castsi256_ps(bits.a), _mm256_castsi256_ps(bits.b)}; }
KT_INLINE I without(I a, int32_t value) {
  const __m256i wide = _mm256_set1_epi32(value);
  return {_mm256_andnot_si256(_mm256_cmpeq_epi32(a.a, wide), a.a),
          _mm256_andnot_si256(_mm256_cmpeq_epi32(a.b, wide), a.b)};
}

#endif

#if defined(KT_HAS_GEMV)

#define KT_TOKENS _Pragma("GCC unroll 8") for (int t = 0; t < T; ++t)

// One line of the weights. The core runs ahead of one token's products far enough by itself, but not
// of several tokens': then lines are asked for 4 KiB ahead (for one token that costs up to 15 %).
template <int T>
KT_INLINE I take_line(const uint8_t* p) {
  if constexpr (T > 1) __builtin_prefetch(p + 4096, 0, 3);
  return load_i(p);
}

// total += dot * x.scale * scale
template <class Block>
KT_INLINE F add_dot(F total, I dot, const Block* x, F scale) {
  return fma(mul(to_float(dot), set_f(x->scale)), scale, total);
}

#if defined(KT_ISA_AVX512)

// One line of weights whose instructions take longer than reading: the core does not run ahead far
// enough of one token's either.
KT_INLINE I take_slow_line(const uint8_t* p) {
  __builtin_prefetch(p + 4096, 0, 3);
  return load_i(p);
}

// sum += (a * first + b * second) * x.scale, for two groups of 16 values; a factor that the record has
// for all waits for its end. Another order than that of gemm_inl.h (FormatKernels::few_for_all), with
// half of the multiplications.
KT_INLINE F add_two_dots(F sum, I a, F first, I b, F second, const ActBlock* x) {
  return fma(fma(to_float(b), second, mul(to_float(a), first)), set_f(x->scale), sum);
}

#endif

KT_INLINE int32_t sum32(const ActBlock* x) { return x->sum[0] + x->sum[1]; }

// The dot product of a group, of which values 0..15 (part 0), 16..31 (1) or all 32 (2) are a
// block's, begins with what the format's offset takes off,
template <class Q>
KT_INLINE Acc group_start(const ActBlock* x, int part) {
  return acc_from(-Q::kOffset * (part == 2 ? sum32(x) : x->sum[part]));
}
// and ends so.
template <class Q>
KT_INLINE I group_dot(const Acc& acc, const ActBlock*) {
  return acc_sum(acc);
}

// total += min * sum of the values of a group of 32
template <class Block>
KT_INLINE F add_min(F total, const Block* x, F min) {
  return fma(min, set_f(x->scaled_sum), total);
}

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
