// The inner products of the prompt GEMM in plain C++: one row group of a slab times every token. The
// same sums in the same order as micro_avx512_inl.h.
#pragma once

#include "cpu/kernels/activations_inl.h"
#include "cpu/kernels/prefetcher_inl.h"
#include "cpu/kernels/slab_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

constexpr int chunk_words(int, int, int) { return 0; }

// The products of V words, each four consecutive values of 16 rows, with 4 V int16 values as the
// activations' blocks order them.
template <int V>
KT_INLINE I dot_q(const int8_t (*words)[64], const int16_t* q) {
  I sum = set_i(0);
  for (int j = 0; j < V; ++j, q += 4) {
    const int32_t q0 = q[0], q2 = q[1], q1 = q[2], q3 = q[3];
    for (int row = 0; row < 16; ++row) {
      const int8_t* w = words[j] + row * 4;
      sum.v[row] += w[0] * q0 + w[1] * q1 + w[2] * q2 + w[3] * q3;
    }
  }
  return sum;
}

// parts: [count][16], used here only. sums: [count][kSumsStride].
template <int V, bool kMin>
static void digit_rows(const SlabRows<V, kMin>& w, int groups, const void* const* rows, int count,
                       int64_t at, float (*parts)[16], float* sums) {
  for (int t = 0; t < count; ++t) store_f(parts[t], zero_f());
  for (int g = 0; g < groups; ++g) {
    const F scale = load_f(w.scale[g]), low = kMin ? load_f(w.min[kMin ? g : 0]) : zero_f();
    const int b = V == 8 ? g : g / 2;
    for (int t = 0; t < count; ++t) {
      const DigitBlock& x = *(const DigitBlock*)((const uint8_t*)rows[t] + at);
      const I dot = dot_q<V>(w.w + g * V, x.q + g * (V * 4));
      F part = fma(to_float(shl(dot, x.shift[b])), scale, load_f(parts[t]));
      if constexpr (kMin) part = fma(set_f(V == 8 ? x.sum[b] : x.half_sum[g]), low, part);
      store_f(parts[t], part);
    }
  }
  for (int t = 0; t < count; ++t) {
    const DigitBlock& x = *(const DigitBlock*)((const uint8_t*)rows[t] + at);
    const int column = x.outlier_at;
    const I byte = sar(shl(load_i(w.w[column / 4]), 24 - 8 * (column % 4)), 24);
    const F weight = mul(to_float(byte), load_f(w.scale[column / (V * 4)]));
    float* total = sums + t * kSumsStride;
    const F dots = fma(load_f(parts[t]), set_f(x.unit), load_f(total));
    store_f(total, fma(weight, set_f(x.outlier), dots));
  }
}

template <int V, bool kMin>
static void exact_rows(const SlabRows<V, kMin>& w, int groups, const void* const* rows, int count,
                       int64_t at, float* sums) {
  for (int g = 0; g < groups; ++g) {
    const F scale = load_f(w.scale[g]), low = kMin ? load_f(w.min[kMin ? g : 0]) : zero_f();
    const int b = V == 8 ? g : g / 2, first = V == 8 ? 0 : g % 2 * 16;
    for (int t = 0; t < count; ++t) {
      const ActBlock& x = ((const ActBlock*)((const uint8_t*)rows[t] + at))[b];
      const int32_t sum = V == 8 ? x.sum[0] + x.sum[1] : x.sum[first / 16];
      const I dot = dot_q<V>(w.w + g * V, x.q + first);
      float* total = sums + t * kSumsStride;
      F result = fma(mul(to_float(dot), set_f(x.scale)), scale, load_f(total));
      if constexpr (kMin) result = fma(low, set_f(x.scale * (float)sum), result);
      store_f(total, result);
    }
  }
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
