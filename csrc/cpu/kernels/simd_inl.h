// Sixteen float lanes and sixteen int32 lanes, the same names on every instruction set.
//
// A lane is a weight row (R16) or a consecutive value; 16 lanes are one AVX-512 register, two AVX2
// registers, or an array the compiler vectorises as far as baseline x86-64 goes. Included inside
// the ISA's anonymous namespace.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(KT_ISA_AVX512) || defined(KT_ISA_AVX2)
#include <immintrin.h>
#endif

#include "base/half.h"

namespace kt::cpu::KT_ISA {
namespace {

#define KT_INLINE static inline __attribute__((always_inline))

#if defined(KT_ISA_AVX512)

struct F {
  __m512 v;
};
struct I {
  __m512i v;
};

KT_INLINE F zero_f() { return {_mm512_setzero_ps()}; }
KT_INLINE F set_f(float x) { return {_mm512_set1_ps(x)}; }
KT_INLINE F load_f(const float* p) { return {_mm512_loadu_ps(p)}; }
KT_INLINE void store_f(float* p, F a) { _mm512_storeu_ps(p, a.v); }
KT_INLINE F add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
KT_INLINE F sub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
KT_INLINE F mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
KT_INLINE F div(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
KT_INLINE F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
KT_INLINE F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
KT_INLINE F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
KT_INLINE F round_f(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// yes where a <= b, else no
KT_INLINE F select_le(F a, F b, F yes, F no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ), no.v, yes.v)};
}
KT_INLINE float reduce_add(F a) {
  // Written out: GCC 12 warns falsely inside _mm512_reduce_add_ps.
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}
KT_INLINE float reduce_max(F a) {
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_max_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}
KT_INLINE F load_half(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))};
}
KT_INLINE void store_half(uint16_t* p, F a) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
KT_INLINE F load_bf16(const uint16_t* p) {
  return {_mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}
KT_INLINE F load_u8(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}

KT_INLINE I set_i(int32_t x) { return {_mm512_set1_epi32(x)}; }
KT_INLINE I load_i(const void* p) { return {_mm512_loadu_si512(p)}; }
KT_INLINE void store_i(void* p, I a) { _mm512_storeu_si512(p, a.v); }
KT_INLINE I add(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
KT_INLINE I mul(I a, I b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
KT_INLINE I band(I a, I b) { return {_mm512_and_si512(a.v, b.v)}; }
KT_INLINE I bor(I a, I b) { return {_mm512_or_si512(a.v, b.v)}; }
KT_INLINE I bxor(I a, I b) { return {_mm512_xor_si512(a.v, b.v)}; }
KT_INLINE I sub_bytes(I a, I b) { return {_mm512_sub_epi8(a.v, b.v)}; }
// Shifts by a count known after unrolling.
KT_INLINE I shl(I a, int n) { return {_mm512_sll_epi32(a.v, _mm_cvtsi32_si128(n))}; }
KT_INLINE I shr(I a, int n) { return {_mm512_srl_epi32(a.v, _mm_cvtsi32_si128(n))}; }
KT_INLINE I sar(I a, int n) { return {_mm512_sra_epi32(a.v, _mm_cvtsi32_si128(n))}; }
// Every byte, which must be 0..15, replaced by table[byte].
KT_INLINE I lookup16(I a, const uint8_t* table) {
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table)), a.v)};
}
KT_INLINE F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
KT_INLINE F as_float(I a) { return {_mm512_castsi512_ps(a.v)}; }  // the same bits
// The low 16 bits of each lane as binary16.
KT_INLINE F half_lanes(I a) { return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(a.v))}; }
KT_INLINE I to_int(F a) { return {_mm512_cvtps_epi32(a.v)}; }  // round to nearest even

// table[index] of each lane. The table has an even number of entries: they are read in pairs.
KT_INLINE I gather16(const uint16_t* table, I index) {
  const __m512i pair = _mm512_i32gather_epi32(_mm512_srli_epi32(index.v, 1), table, 4);
  const __m512i odd = _mm512_and_si512(_mm512_slli_epi32(index.v, 4), _mm512_set1_epi32(16));
  return {_mm512_and_si512(_mm512_srlv_epi32(pair, odd), _mm512_set1_epi32(0xFFFF))};
}

#elif defined(KT_ISA_AVX2)

struct F {
  __m256 a, b;
};
struct I {
  __m256i a, b;
};

// Dot products of pairs of 16 bits, and of four unsigned with four signed bytes, added to 32 bits: one
// instruction each of AVX-VNNI, which CPUs with AVX-512 VNNI may have in that encoding only.
#if defined(KT_VNNI_EVEX)
#define KT_VNNI_OP(op) op " %2, %1, %0"
#elif defined(KT_VNNI)
#define KT_VNNI_OP(op) "%{vex%} " op " %2, %1, %0"
#endif
#if defined(KT_VNNI)
KT_INLINE __m256i dot_pairs(__m256i sum, __m256i x, __m256i y) {
  asm(KT_VNNI_OP("vpdpwssd") : "+x"(sum) : "x"(x), "x"(y));
  return sum;
}
KT_INLINE __m256i dot_bytes(__m256i sum, __m256i x, __m256i y) {
  asm(KT_VNNI_OP("vpdpbusd") : "+x"(sum) : "x"(x), "x"(y));
  return sum;
}
#else
KT_INLINE __m256i dot_pairs(__m256i sum, __m256i x, __m256i y) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(x, y));
}
#endif

KT_INLINE F zero_f() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
KT_INLINE F set_f(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
KT_INLINE F load_f(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
KT_INLINE void store_f(float* p, F x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
KT_INLINE F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
KT_INLINE F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
KT_INLINE F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
KT_INLINE F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
KT_INLINE F fma(F x, F y, F z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
KT_INLINE F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
KT_INLINE F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
KT_INLINE F round_f(F x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
// yes where x <= y, else no
KT_INLINE F select_le(F x, F y, F yes, F no) {
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, y.a, _CMP_LE_OQ)),
          _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, y.b, _CMP_LE_OQ))};
}
KT_INLINE float reduce_add(F x) {
  const __m256 half = _mm256_add_ps(x.a, x.b);
  const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}
KT_INLINE float reduce_max(F x) {
  const __m256 half = _mm256_max_ps(x.a, x.b);
  const __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_max_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}
KT_INLINE F load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
KT_INLINE void store_half(uint16_t* p, F x) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
KT_INLINE __m256 widen_bf16(const uint16_t* p) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
KT_INLINE F load_bf16(const uint16_t* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
KT_INLINE F load_u8(const uint8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p))),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}

KT_INLINE I set_i(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
KT_INLINE I load_i(const void* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)};
}
KT_INLINE void store_i(void* p, I x) {
  _mm256_storeu_si256((__m256i*)p, x.a);
  _mm256_storeu_si256((__m256i*)p + 1, x.b);
}
KT_INLINE I add(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
KT_INLINE I mul(I x, I y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
KT_INLINE I band(I x, I y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
KT_INLINE I bor(I x, I y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
KT_INLINE I bxor(I x, I y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
KT_INLINE I sub_bytes(I x, I y) { return {_mm256_sub_epi8(x.a, y.a), _mm256_sub_epi8(x.b, y.b)}; }
// Shifts by a count known after unrolling.
KT_INLINE I shl(I x, int n) {
  const __m128i by = _mm_cvtsi32_si128(n);
  return {_mm256_sll_epi32(x.a, by), _mm256_sll_epi32(x.b, by)};
}
KT_INLINE I shr(I x, int n) {
  const __m128i by = _mm_cvtsi32_si128(n);
  return {_mm256_srl_epi32(x.a, by), _mm256_srl_epi32(x.b, by)};
}
KT_INLINE I sar(I x, int n) {
  const __m128i by = _mm_cvtsi32_si128(n);
  return {_mm256_sra_epi32(x.a, by), _mm256_sra_epi32(x.b, by)};
}
// Every byte, which must be 0..15, replaced by table[byte].
KT_INLINE I lookup16(I x, const uint8_t* table) {
  const __m256i wide = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
  return {_mm256_shuffle_epi8(wide, x.a), _mm256_shuffle_epi8(wide, x.b)};
}
KT_INLINE F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
KT_INLINE F as_float(I x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
KT_INLINE __m256 half_lanes(__m256i x) {
  const __m256i low = _mm256_and_si256(x, _mm256_set1_epi32(0xFFFF));
  return _mm256_cvtph_ps(
      _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1)));
}
// The low 16 bits of each lane as binary16.
KT_INLINE F half_lanes(I x) { return {half_lanes(x.a), half_lanes(x.b)}; }
KT_INLINE I to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }

KT_INLINE __m256i gather16(const uint16_t* table, __m256i index) {
  const __m256i pair = _mm256_i32gather_epi32((const int*)table, _mm256_srli_epi32(index, 1), 4);
  const __m256i odd = _mm256_and_si256(_mm256_slli_epi32(index, 4), _mm256_set1_epi32(16));
  return _mm256_and_si256(_mm256_srlv_epi32(pair, odd), _mm256_set1_epi32(0xFFFF));
}
// table[index] of each lane. The table has an even number of entries: they are read in pairs.
KT_INLINE I gather16(const uint16_t* table, I x) {
  return {gather16(table, x.a), gather16(table, x.b)};
}

#else  // scalar: baseline x86-64, left to the compiler's vectoriser

struct F {
  float v[16];
};
struct I {
  int32_t v[16];
};

#define KT_LANES for (int i = 0; i < 16; ++i)
KT_INLINE F set_f(float x) { F r; KT_LANES r.v[i] = x; return r; }
KT_INLINE F zero_f() { return set_f(0.0f); }
KT_INLINE F load_f(const float* p) { F r; memcpy(r.v, p, 64); return r; }
KT_INLINE void store_f(float* p, F a) { memcpy(p, a.v, 64); }
KT_INLINE F add(F a, F b) { KT_LANES a.v[i] += b.v[i]; return a; }
KT_INLINE F sub(F a, F b) { KT_LANES a.v[i] -= b.v[i]; return a; }
KT_INLINE F mul(F a, F b) { KT_LANES a.v[i] *= b.v[i]; return a; }
KT_INLINE F div(F a, F b) { KT_LANES a.v[i] /= b.v[i]; return a; }
KT_INLINE F fma(F a, F b, F c) { KT_LANES c.v[i] += a.v[i] * b.v[i]; return c; }
KT_INLINE F max(F a, F b) { KT_LANES a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
KT_INLINE F min(F a, F b) { KT_LANES a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
// yes where a <= b, else no
KT_INLINE F select_le(F a, F b, F yes, F no) {
  KT_LANES no.v[i] = a.v[i] <= b.v[i] ? yes.v[i] : no.v[i];
  return no;
}
KT_INLINE float reduce_add(F a) {
  // The same tree as the wide versions, so that results agree to the last bit where they can.
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) a.v[i] += a.v[i + width];
  return a.v[0];
}
KT_INLINE float reduce_max(F a) {
  float best = a.v[0];
  KT_LANES best = a.v[i] > best ? a.v[i] : best;
  return best;
}
KT_INLINE F load_half(const uint16_t* p) { F r; KT_LANES r.v[i] = half_to_float(p[i]); return r; }
KT_INLINE void store_half(uint16_t* p, F a) { KT_LANES p[i] = float_to_half(a.v[i]); }
KT_INLINE F load_bf16(const uint16_t* p) { F r; KT_LANES r.v[i] = bf16_to_float(p[i]); return r; }
KT_INLINE F load_u8(const uint8_t* p) { F r; KT_LANES r.v[i] = (float)p[i]; return r; }

KT_INLINE I set_i(int32_t x) { I r; KT_LANES r.v[i] = x; return r; }
KT_INLINE I load_i(const void* p) { I r; memcpy(r.v, p, 64); return r; }
KT_INLINE void store_i(void* p, I a) { memcpy(p, a.v, 64); }
KT_INLINE I add(I a, I b) { KT_LANES a.v[i] += b.v[i]; return a; }
KT_INLINE I mul(I a, I b) { KT_LANES a.v[i] *= b.v[i]; return a; }
KT_INLINE I band(I a, I b) { KT_LANES a.v[i] &= b.v[i]; return a; }
KT_INLINE I bor(I a, I b) { KT_LANES a.v[i] |= b.v[i]; return a; }
KT_INLINE I bxor(I a, I b) { KT_LANES a.v[i] ^= b.v[i]; return a; }
// Per byte, without borrowing from the next.
KT_INLINE I sub_bytes(I a, I b) {
  KT_LANES {
    const uint32_t x = (uint32_t)a.v[i], y = (uint32_t)b.v[i], top = 0x80808080u;
    a.v[i] = (int32_t)(((x | top) - (y & ~top)) ^ ((x ^ ~y) & top));
  }
  return a;
}
// Shifts by a count known after unrolling.
KT_INLINE I shl(I a, int n) { KT_LANES a.v[i] = (int32_t)((uint32_t)a.v[i] << n); return a; }
KT_INLINE I shr(I a, int n) { KT_LANES a.v[i] = (int32_t)((uint32_t)a.v[i] >> n); return a; }
KT_INLINE I sar(I a, int n) { KT_LANES a.v[i] >>= n; return a; }
// Every byte, which must be 0..15, replaced by table[byte].
KT_INLINE I lookup16(I a, const uint8_t* table) {
  uint8_t bytes[64];
  memcpy(bytes, a.v, 64);
  for (int i = 0; i < 64; ++i) bytes[i] = table[bytes[i]];
  memcpy(a.v, bytes, 64);
  return a;
}
KT_INLINE F to_float(I a) { F r; KT_LANES r.v[i] = (float)a.v[i]; return r; }
KT_INLINE F as_float(I a) { F r; memcpy(r.v, a.v, 64); return r; }
// The low 16 bits of each lane as binary16.
KT_INLINE F half_lanes(I a) { F r; KT_LANES r.v[i] = half_to_float((uint16_t)a.v[i]); return r; }
// Adding and subtracting 1.5 * 2^23 rounds to nearest even, for magnitudes below 2^22.
KT_INLINE F round_f(F a) {
  KT_LANES a.v[i] = (a.v[i] + 12582912.0f) - 12582912.0f;
  return a;
}
KT_INLINE I to_int(F a) { I r; a = round_f(a); KT_LANES r.v[i] = (int32_t)a.v[i]; return r; }
KT_INLINE I gather16(const uint16_t* table, I index) {
  KT_LANES index.v[i] = table[index.v[i]];
  return index;
}
#undef KT_LANES

#endif

KT_INLINE F neg(F a) { return sub(zero_f(), a); }

// First n (< 16) values of p, the rest zero.
KT_INLINE F load_f_tail(const float* p, int64_t n) {
  float lanes[16] = {0};
  memcpy(lanes, p, (size_t)n * sizeof(float));
  return load_f(lanes);
}
KT_INLINE void store_f_tail(float* p, F a, int64_t n) {
  float lanes[16];
  store_f(lanes, a);
  memcpy(p, lanes, (size_t)n * sizeof(float));
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
