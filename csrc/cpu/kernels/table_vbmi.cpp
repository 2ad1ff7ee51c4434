// What AVX-512 with VBMI does otherwise than AVX-512 without: formats whose values are looked up
// are looked up by bytes. The same integers in the same order, so the same bits.
//
// The set's other instruction, the dot product of bf16, is in none of its kernels: attention
// multiplies 16-bit integers at the same rate and loses less, and a product with weights in bf16
// waits for memory.
#include "cpu/kernels/format_table_inl.h"
#include "cpu/kernels/gemv_iq1_vbmi_inl.h"
#include "cpu/kernels/gemv_iq2_vbmi_inl.h"
#include "cpu/kernels/gemv_iq3_vbmi_inl.h"
#include "cpu/kernels/gemv_k_small_inl.h"
#include "cpu/kernels/gemv_ternary_inl.h"

#include "cpu/kernels/gemv_inl.h"  // behind those

namespace kt::cpu::KT_ISA {
namespace {

constinit const auto kFormats = make_formats(
    quant::TypeList<quant::Q3_K, quant::IQ1_S, quant::IQ1_M, quant::IQ2_XXS, quant::IQ2_XS,
                    quant::IQ2_S, quant::IQ3_XXS, quant::IQ3_S, quant::TQ1_0>{},
    []<class Q>(Q) -> FormatKernels {
      return {.gguf_id = Q::kGgufId, .few = gemv_of<Q>(), .few_for_all = kOwnOrder<Q>};
    });

}  // namespace

extern constinit const KernelTable kTable;
constinit const KernelTable kTable = {
    .name = KT_ISA_NAME,
    .formats = kFormats.rows,
    .num_formats = kFormats.kCount};

}  // namespace kt::cpu::KT_ISA
