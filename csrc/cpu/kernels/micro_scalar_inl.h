// The inner products of the prompt GEMM in plain C++: one row group of a slab times every token. The
// same sums in the same order as micro_avx512_inl.h.
#pragma once

#include "cpu/kernels/activations_inl.h"
#include "cpu/kernels/prefetcher_inl.h"
#include "cpu/kernels/slab_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

constexpr int chunk_words(int, int, int) { return 0; }

// One weight vector: four consecutive values of 16 rows, `bytes[row * 4 + j]`; and the dot product of
// V of them with 4 V int16 values, as the activations' blocks order them.

struct Words {
  const uint8_t* bytes;
  int offset;
};

KT_INLINE Words load_words(const uint8_t* p, int offset) { return {p, offset}; }

template <int V>
KT_INLINE I dot_q(const Words* words, const int16_t* q) {
  I sum = set_i(0);
  for (int j = 0; j < V; ++j, q += 4) {
    const int32_t q0 = q[0], q2 = q[1], q1 = q[2], q3 = q[3];
    for (int row = 0; row < 16; ++row) {
      const uint8_t* u = words[j].bytes + row * 4;
      const int o = words[j].offset;
      sum.v[row] += (u[0] - o) * q0 + (u[1] - o) * q1 + (u[2] - o) * q2 + (u[3] - o) * q3;
    }
  }
  return sum;
}


// A group's words with the format's offset taken off.
template <int V>
KT_INLINE void load_group(const uint8_t (*u)[64], int offset, Words* words) {
  for (int j = 0; j < V; ++j) words[j] = load_words(u[j], offset);
}

// parts: [count][16], used here only. sums: [count][kSumsStride].
template <int V, bool kMin>
static void digit_rows(const SlabRows<V, kMin>& w, int offset, int groups, const void* const* rows,
                       int count, int64_t at, float (*parts)[16], float* sums) {
  for (int t = 0; t < count; ++t) store_f(parts[t], zero_f());
  for (int g = 0; g < groups; ++g) {
    Words words[V];
    load_group<V>(w.u + g * V, offset, words);
    const F scale = load_f(w.scale[g]), low = kMin ? load_f(w.min[kMin ? g : 0]) : zero_f();
    const int b = V == 8 ? g : g / 2;
    for (int t = 0; t < count; ++t) {
      const DigitBlock& x = *(const DigitBlock*)((const uint8_t*)rows[t] + at);
      const I dot = dot_q<V>(words, x.q + g * (V * 4));
      F part = fma(to_float(shl(dot, x.shift[b])), scale, load_f(parts[t]));
      if constexpr (kMin) part = fma(set_f(V == 8 ? x.sum[b] : x.half_sum[g]), low, part);
      store_f(parts[t], part);
    }
  }
  for (int t = 0; t < count; ++t) {
    const DigitBlock& x = *(const DigitBlock*)((const uint8_t*)rows[t] + at);
    const int column = x.outlier_at;
    const I byte = band(shr(load_i(w.u[column / 4]), 8 * (column % 4)), set_i(255));
    const F weight = mul(to_float(add(byte, set_i(-offset))), load_f(w.scale[column / (V * 4)]));
    float* total = sums + t * kSumsStride;
    const F dots = fma(load_f(parts[t]), set_f(x.unit), load_f(total));
    store_f(total, fma(weight, set_f(x.outlier), dots));
  }
}

template <int V, bool kMin>
static void exact_rows(const SlabRows<V, kMin>& w, int offset, int groups, const void* const* rows,
                       int count, int64_t at, float* sums) {
  for (int g = 0; g < groups; ++g) {
    Words words[V];
    load_group<V>(w.u + g * V, offset, words);
    const F scale = load_f(w.scale[g]), low = kMin ? load_f(w.min[kMin ? g : 0]) : zero_f();
    const int b = V == 8 ? g : g / 2, first = V == 8 ? 0 : g % 2 * 16;
    for (int t = 0; t < count; ++t) {
      const ActBlock& x = ((const ActBlock*)((const uint8_t*)rows[t] + at))[b];
      const int32_t sum = V == 8 ? x.sum[0] + x.sum[1] : x.sum[first / 16];
      const I dot = dot_q<V>(words, x.q + first);
      float* total = sums + t * kSumsStride;
      F result = fma(mul(to_float(dot), set_f(x.scale)), scale, load_f(total));
      if constexpr (kMin) result = fma(low, set_f(x.scale * (float)sum), result);
      store_f(total, result);
    }
  }
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
