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

KT_INLINE void store_q(ActBlock& block, const int32_t* q) {
  for (int half = 0; half < 2; ++half) {
    int32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += q[half * 16 + i];
    block.sum[half] = sum;
  }
#if defined(KT_ISA_AVX512)
  for (int i = 0; i < 32; ++i) {
    const int32_t hi = (q[i] + 128) >> 8;
    block.hi[i] = (int8_t)hi;
    block.lo[i] = (int8_t)(q[i] - hi * 256);
  }
  for (int half = 0; half < 2; ++half) {
    int32_t lo = 0, hi = 0;
    for (int i = 16 * half; i < 16 * half + 16; ++i) {
      lo += block.lo[i];
      hi += block.hi[i];
    }
    block.four_sums[half][0] = (int16_t)(4 * lo);
    block.four_sums[half][1] = (int16_t)(4 * hi);
  }
#else
  for (int i = 0; i < 32; i += 4) {
    block.q[i] = (int16_t)q[i];
    block.q[i + 1] = (int16_t)q[i + 2];
    block.q[i + 2] = (int16_t)q[i + 1];
    block.q[i + 3] = (int16_t)q[i + 3];
  }
#endif
}

// 32 values, zero beyond the end of the row.
struct Chunk {
  F a, b;
};

KT_INLINE Chunk load_chunk(const float* x, int64_t left) {
  if (left >= 32) return {load_f(x), load_f(x + 16)};
  if (left >= 16) return {load_f(x), load_f_tail(x + 16, left - 16)};
  return {load_f_tail(x, left), zero_f()};
}

KT_INLINE void quantize_chunk(const Chunk& x, float scale, ActBlock& out) {
  int32_t q[32];
  // Below kTiniest the reciprocal would overflow; such rows are zero for every purpose.
  constexpr float kTiniest = 1e-30f;
  if (!(scale >= kTiniest)) scale = 0.0f;
  const F inverse = set_f(scale > 0.0f ? 1.0f / scale : 0.0f);
  store_i(q, to_int(mul(x.a, inverse)));
  store_i(q + 16, to_int(mul(x.b, inverse)));
  for (int i = 0; i < 32; ++i) q[i] = q[i] < -32512 ? -32512 : q[i] > 32512 ? 32512 : q[i];
  out.scale = scale;
  store_q(out, q);
}

KT_INLINE void quantize_exact_row(const float* x, int64_t k, ActBlock* out) {
  for (int64_t i = 0; i < k; i += 32, ++out) {
    const Chunk chunk = load_chunk(x + i, k - i);
    const float top = reduce_max(max(max(chunk.a, neg(chunk.a)), max(chunk.b, neg(chunk.b))));
    quantize_chunk(chunk, top * (1.0f / 32512.0f), *out);
    out->scaled_sum = out->scale * (float)(out->sum[0] + out->sum[1]);
  }
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
