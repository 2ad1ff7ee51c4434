// Matrix products on R16, by number of tokens.
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
#include "cpu/kernels/transposed_inl.h"

#include "cpu/kernels/gemv_inl.h"  // behind those

namespace kt::cpu::KT_ISA {
namespace {

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
          .transposed = &transposed<Q>,
          .transposed_halves = transposed_halves_of<Q>()};
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
