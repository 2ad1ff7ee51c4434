// Matrix products on R16, by number of tokens; and the transposed product.
//
// A row's result must not depend on how many rows come with it, so gemv and gemm take a row's sums in
// one order. For two int8 halves (Rounding::kExact): per row and token, groups of kGroup values in
// order of k,
//     total = fma(float(dot) * x.scale, scale, total)      dot = sum (u - kOffset) q, as int32
//     total = fma(min, x.scale * float(sum q), total)      only formats with minima
// where powers of two may move between the factors, because they change no bit. Digits (digits_inl.h
// has their order) go to gemm whatever their number.
#pragma once

#include "cpu/kernels/gemm_inl.h"
#include "cpu/kernels/gemv_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

template <class Q>
static void matmul(const MatmulTask& task) {
  if (task.num_tokens <= kGemvTokens && task.rounding != Rounding::kDigit)
    gemv<Q>(task);
  else
    gemm<Q>(task);
}

template <class Q>
static void transposed(const TransposedTask& task) {
  constexpr int kChunk = kFloatChunk<Q>;
  alignas(64) float weights[kChunk][16];
  for (int64_t group = task.row_begin / 16; group * 16 < task.row_end; ++group) {
    // Lanes outside the rows asked for meet a zero.
    alignas(64) float lanes[16];
    for (int i = 0; i < 16; ++i) {
      const int64_t row = group * 16 + i;
      lanes[i] = row >= task.row_begin && row < task.row_end ? task.x[row - task.row_begin] : 0.0f;
    }
    const F x = load_f(lanes);
    for (int64_t k = 0; k < task.k; k += kChunk) {
      const int width = task.k - k < kChunk ? (int)(task.k - k) : kChunk;
      unpack_floats<Q>(record_at<Q>(task, group, k / Q::kValues), width, weights);
      for (int i = 0; i < width; ++i) task.y[k + i] += reduce_add(mul(load_f(weights[i]), x));
    }
  }
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
