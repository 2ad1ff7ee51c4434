// What AMX does otherwise than AVX-512: products with many tokens, for formats of 32 values per scale.
// Those of 16 stay with the vectors, to which half of a tile would be idle.
#include "cpu/kernels/format_table_inl.h"
#include "cpu/kernels/gemm_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

constinit const auto kFormats = make_formats(quant::Formats{}, []<class Q>(Q) -> FormatKernels {
  if constexpr (Q::kGroup == 32)
    return {.gguf_id = Q::kGgufId, .many = gemm_of<Q>()};
  else
    return {.gguf_id = Q::kGgufId};
});

}  // namespace

extern constinit const KernelTable kTable;
constinit const KernelTable kTable = {
    .name = KT_ISA_NAME,
    .formats = kFormats.rows,
    .num_formats = kFormats.kCount};

}  // namespace kt::cpu::KT_ISA
