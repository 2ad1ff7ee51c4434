// What AVX-VNNI does otherwise than AVX2: one instruction where AVX2 multiplies, adds pairs and adds,
// in all products of integers. The same integers in the same order, so the same bits. Codebook formats
// spend their time on looking up: generated tokens have AVX2's kernels there.
#include "cpu/kernels/attention_tile_inl.h"
#include "cpu/kernels/format_table_inl.h"
#include "cpu/kernels/gemm_inl.h"
#include "cpu/kernels/gemv_blocks_inl.h"
#include "cpu/kernels/gemv_k_avx2_inl.h"
#include "cpu/kernels/gemv_k_inl.h"
#include "cpu/kernels/gemv_ternary_inl.h"
#include "cpu/kernels/limits_inl.h"

#include "cpu/kernels/gemv_inl.h"  // behind those

namespace kt::cpu::KT_ISA {
namespace {

constinit const auto kFormats = make_formats(quant::Formats{}, []<class Q>(Q) -> FormatKernels {
  return {.gguf_id = Q::kGgufId,
          .few = gemv_of<Q>(),
          .few_for_all = kOwnOrder<Q>,
          .many = gemm_of<Q>()};
});

}  // namespace

extern constinit const KernelTable kTable;
constinit const KernelTable kTable = {
    .name = KT_ISA_NAME,
    .formats = kFormats.rows,
    .num_formats = kFormats.kCount,
    .attend_tile = &attend_tile,
    .score_tile = &score_tile,
    .limits = kLimits};

}  // namespace kt::cpu::KT_ISA
