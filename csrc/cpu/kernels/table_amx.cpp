// What AMX does otherwise than AVX-512: products with many tokens, for formats of 32 values per scale.
// Those of 16 stay with the vectors, to which half of a tile would be idle.
#include "cpu/kernels/gemm_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

template <class Q>
constexpr FormatKernels many_of_format() {
  if constexpr (Q::kGroup == 32)
    return {.gguf_id = Q::kGgufId, .many = gemm_of<Q>()};
  else
    return {.gguf_id = Q::kGgufId};
}

template <int n>
struct FormatTable {
  FormatKernels rows[n];
};

template <class... Qs>
constexpr FormatTable<(int)sizeof...(Qs)> make_formats(quant::TypeList<Qs...>) {
  return {{many_of_format<Qs>()...}};
}

constinit const auto kFormats = make_formats(quant::Formats{});

}  // namespace

extern constinit const KernelTable kTable;
constinit const KernelTable kTable = {
    .name = KT_ISA_NAME,
    .formats = kFormats.rows,
    .num_formats = (int)(sizeof kFormats.rows / sizeof kFormats.rows[0])};

}  // namespace kt::cpu::KT_ISA
