// The one translation unit of a whole instruction set: everything in an anonymous namespace of the
// ISA's own, exported as one constant table. No library type, nothing weak, no dynamic initialiser:
// a function shared between two ISAs at link time would run the wrong one's instructions.
#include "cpu/kernels/attention_inl.h"
#include "cpu/kernels/attention_tile_inl.h"
#include "cpu/kernels/format_table_inl.h"
#include "cpu/kernels/limits_inl.h"
#include "cpu/kernels/matmul_inl.h"
#include "cpu/kernels/vector_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

static void quantize_exact(const float* x, int64_t begin, int64_t end, uint8_t* row) {
  quantize_exact_row(x, end - begin, (ActBlock*)row + begin / 32);
}

static void quantize_digit(const float* x, int64_t begin, int64_t end, int64_t k, uint8_t* row) {
  quantize_digit_row(x, begin, end, k, row);
}

constinit const auto kFormats =
    make_formats(quant::Formats{}, []<class Q>(Q) { return kernels_of_format<Q>(); });

}  // namespace

extern constinit const KernelTable kTable;
constinit const KernelTable kTable = {
    KT_ISA_NAME,
    kFormats.rows,
    kFormats.kCount,
    &quantize_exact,
    &quantize_digit,
    &rms_norm,
    &swiglu,
    &axpy,
    &dot,
    &softmax,
    &sigmoid,
    &block_max,
    &block_exp_sum,
    &attention,
    &attend_tile,
    &fold_tiles,
    &score_tile,
    &put_tile,
    &get_tile,
    &round_int16,
    &store_kv,
    &read_kv,
    kLimits,
};

}  // namespace kt::cpu::KT_ISA
