// Matrix products in float: the reference arithmetic, and weights that are stored as floats.
#pragma once

#include "cpu/kernels/float_tile_inl.h"
#include "cpu/kernels/store_rows_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

constexpr int kTokenBlock = 64;  // 4 KiB of partial sums beside 16 KiB of weights

template <class Q>
static void floats_pass(const MatmulTask& task, int first, int count) {
  constexpr int kChunk = kFloatChunk<Q>;
  alignas(64) float weights[kChunk][16];
  alignas(64) float sums[kTokenBlock][16];
  for (int64_t group = task.group_begin; group < task.group_end; ++group) {
    for (int t = 0; t < count; ++t) store_f(sums[t], zero_f());
    for (int64_t k = 0; k < task.k; k += kChunk) {
      const int width = task.k - k < kChunk ? (int)(task.k - k) : kChunk;
      unpack_floats<Q>(record_at<Q>(task, group, k / Q::kValues), width, weights);
      for (int t = 0; t < count; ++t) {
        const float* x = (const float*)task.x[first + t] + k;
        F even = zero_f(), odd = zero_f();
        int i = 0;
        for (; i + 1 < width; i += 2) {
          even = fma(load_f(weights[i]), set_f(x[i]), even);
          odd = fma(load_f(weights[i + 1]), set_f(x[i + 1]), odd);
        }
        if (i < width) even = fma(load_f(weights[i]), set_f(x[i]), even);
        store_f(sums[t], add(load_f(sums[t]), add(even, odd)));
      }
    }
    for (int t = 0; t < count; ++t) store_rows(task, group, first + t, load_f(sums[t]));
  }
}

template <class Q>
static void gemm_floats(const MatmulTask& task) {
  for (int first = 0; first < task.num_tokens; first += kTokenBlock) {
    const int left = task.num_tokens - first;
    floats_pass<Q>(task, first, left < kTokenBlock ? left : kTokenBlock);
  }
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
