// The near-exact rounding of activations (Rounding::kExact): 32 consecutive values x as scale * q,
//     scale = max|x| / 32512, q = 256 * hi + lo, both signed bytes
// (the last bit of the top step is given up so that hi never leaves -127..127).
//
// A weight byte is u in 0..255 and weights are scale_w * (u - offset) + min_w, so a group of 16 or
// 32 needs sum(u * q) from the dot product and sum(q), stored per 16 values, for offset and minimum.
//
// The integers are the same on every ISA; only their storage differs (hi and lo bytes for the
// byte dot product of VNNI, int16 pairs for the others), so results differ by float order alone.
#pragma once

#include <stddef.h>

#include "cpu/kernel_table.h"
#include "cpu/kernels/simd_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

struct ActBlock {
  float scale;
  float scaled_sum;  // scale * (sum[0] + sum[1]): products with minima have need of it
  int32_t sum[2];  // sum of q over values 0..15 and 16..31
#if defined(KT_ISA_AVX512)
  int8_t hi[32];
  int8_t lo[32];
  int16_t four_sums[2][2];  // per 16 values: four times the sum of lo, and of hi
#else
  int16_t q[32];  // per four values: q0 q2 q1 q3, the order weight bytes split into 16-bit pairs
#endif
};
static_assert(sizeof(ActBlock) <= kActBlockBytes);

// What values become integers with: those of largest magnitude `top` reach 32512.
struct HalfSteps {
  float scale;
  F inverse;
};

KT_INLINE HalfSteps half_steps(float top) {
  // Below kTiniest the reciprocal would overflow; such values are zero for every purpose.
  constexpr float kTiniest = 1e-30f;
  float scale = top * (1.0f / 32512.0f);
  if (!(scale >= kTiniest)) scale = 0.0f;
  return {scale, set_f(scale > 0.0f ? 1.0f / scale : 0.0f)};
}

KT_INLINE I round_to_halves(F x, const HalfSteps& steps) {
  const F most = set_f(32512.0f);
  // max() gives its second operand for a NaN.
  return to_int(min(max(mul(x, steps.inverse), neg(most)), most));
}

#if defined(KT_ISA_AVX512)

KT_INLINE __m128i high_bytes(I q) {
  const __m512i rounded = _mm512_add_epi32(q.v, _mm512_set1_epi32(128));
  return _mm512_cvtepi32_epi8(_mm512_srai_epi32(rounded, 8));
}
KT_INLINE __m128i low_bytes(I q) { return _mm512_cvtepi32_epi8(q.v); }  // q - 256 hi

KT_INLINE void store_q(ActBlock& block, I first, I second) {
  const __m256i hi = _mm256_set_m128i(high_bytes(second), high_bytes(first));
  const __m256i lo = _mm256_set_m128i(low_bytes(second), low_bytes(first));
  const __m512i bytes = _mm512_inserti64x4(_mm512_castsi256_si512(hi), lo, 1);
  static_assert(offsetof(ActBlock, lo) == offsetof(ActBlock, hi) + 32);
  _mm512_storeu_si512(block.hi, bytes);
  // Per sixteen bytes their sum, in every lane of four.
  __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), bytes);
  sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, (_MM_PERM_ENUM)0xB1));
  sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, (_MM_PERM_ENUM)0x4E));
  const __m512i one_each = _mm512_castsi128_si512(_mm_set_epi32(12, 8, 4, 0));
  const __m128i four = _mm512_castsi512_si128(_mm512_permutexvar_epi32(one_each, sums));
  const __m128i low_first = _mm_shuffle_epi32(four, 0x4E);
  _mm_storel_epi64((__m128i*)block.sum, _mm_add_epi32(_mm_slli_epi32(four, 8), low_first));
  const __m128i by_half = _mm_shuffle_epi32(_mm_slli_epi32(four, 2), 0x72);  // lo, hi, lo, hi
  _mm_storel_epi64((__m128i*)block.four_sums, _mm_cvtepi32_epi16(by_half));
}

#elif defined(KT_ISA_AVX2)

KT_INLINE void store_q(ActBlock& block, I first, I second) {
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
  const I halves[2] = {first, second};
  for (int half = 0; half < 2; ++half) {
    const I q = halves[half];
    const __m256i pairs = _mm256_permute4x64_epi64(_mm256_packs_epi32(q.a, q.b), 0xD8);
    _mm256_storeu_si256((__m256i*)(block.q + 16 * half), _mm256_shuffle_epi8(pairs, order));
    const __m256i eight = _mm256_add_epi32(q.a, q.b);
    const __m128i four =
        _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    block.sum[half] = _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xB1)));
  }
}

#else

KT_INLINE void store_q(ActBlock& block, I first, I second) {
  int32_t q[32];
  store_i(q, first);
  store_i(q + 16, second);
  for (int half = 0; half < 2; ++half) {
    int32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += q[half * 16 + i];
    block.sum[half] = sum;
  }
  for (int i = 0; i < 32; i += 4) {
    block.q[i] = (int16_t)q[i];
    block.q[i + 1] = (int16_t)q[i + 2];
    block.q[i + 2] = (int16_t)q[i + 1];
    block.q[i + 3] = (int16_t)q[i + 3];
  }
}

#endif

// 32 values, zero beyond the end of the row.
struct Chunk {
  F a, b;
};

KT_INLINE Chunk load_chunk(const float* x, int64_t left) {
  if (left >= 32) return {load_f(x), load_f(x + 16)};
  if (left >= 16) return {load_f(x), load_f_tail(x + 16, left - 16)};
  return {load_f_tail(x, left), zero_f()};
}

KT_INLINE void quantize_exact_row(const float* x, int64_t k, ActBlock* out) {
  for (int64_t i = 0; i < k; i += 32, ++out) {
    const Chunk chunk = load_chunk(x + i, k - i);
    const float top = reduce_max(max(max(chunk.a, neg(chunk.a)), max(chunk.b, neg(chunk.b))));
    const HalfSteps steps = half_steps(top);
    out->scale = steps.scale;
    store_q(*out, round_to_halves(chunk.a, steps), round_to_halves(chunk.b, steps));
    out->scaled_sum = out->scale * (float)(out->sum[0] + out->sum[1]);
  }
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
