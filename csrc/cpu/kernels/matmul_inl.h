// Matrix products on R16, by number of tokens; and the transposed product.
//
// A row's result must not depend on how many rows come with it, so gemv and gemm take a row's sums
// in one order (or gemv has all the rows: FormatKernels::few_for_all). For two int8 halves
// (Rounding::kExact): per row and token, groups of kGroup values in order of k,
//     total = fma(float(dot) * x.scale, scale, total)      dot = sum (u - kOffset) q, as int32
//     total = fma(min, x.scale * float(sum q), total)      only formats with minima
// where powers of two may move between the factors, because they change no bit. Digits
// (digits_inl.h has their order) go to gemm whatever their number.
#pragma once

#include "cpu/kernels/gemm_float_inl.h"
#include "cpu/kernels/gemm_inl.h"
#include "cpu/kernels/gemv_blocks_inl.h"
#include "cpu/kernels/gemv_codebook_inl.h"
#include "cpu/kernels/gemv_iq1_inl.h"
#include "cpu/kernels/gemv_k_avx2_inl.h"
#include "cpu/kernels/gemv_k_inl.h"
#include "cpu/kernels/gemv_k_small_inl.h"
#include "cpu/kernels/gemv_ternary_inl.h"

#include "cpu/kernels/gemv_inl.h"  // behind those

namespace kt::cpu::KT_ISA {
namespace {

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

template <class Q>
constexpr FormatKernels kernels_of_format() {
  return {.gguf_id = Q::kGgufId,
          .values = Q::kValues,
          .group = Q::kGroup,
          .record_bytes = (int64_t)quant::R16<Q>::kRecordBytes,
          .floats = &gemm_floats<Q>,
          .few = gemv_of<Q>(),
          .few_for_all = kOwnOrder<Q>,
          .many = gemm_of<Q>(),
          .unpack = unpack_of<Q>(),
          .transposed = &transposed<Q>};
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
