// Matrix products on R16 for many tokens. Two row groups at a time, 256 columns at a time: the
// weights are unpacked to a slab in L1 once and every token's activations meet it there, a few
// tokens at a time, those in halves first, while the next slab is fetched. Totals of the tokens,
// 128 bytes each, lie in L2 at worst.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/kernels/store_rows_inl.h"
#if defined(KT_TILES)
#include "cpu/kernels/slab_products_amx_inl.h"
#else
#include "cpu/kernels/slab_products_inl.h"
#endif

namespace kt::cpu::KT_ISA {
namespace {

/// Tokens [first, first + count) of the task. Those that follow go over the same rows again.
template <int V, bool kMin, int kChunk>
static void gemm_pass(const MatmulTask& task, const FormatKernels& format, int first, int count) {
  using Halves = SlabProducts<V, kMin, kChunk, true>;
  using Digits = SlabProducts<V, kMin, kChunk, false>;
  const int64_t row_groups_of_w = (task.rows + 15) / 16, blocks_of_w = task.k / format.values;
  const auto record_of = [&](int64_t group, int64_t column) {
    const int64_t record =
        quant::r16_record(row_groups_of_w, blocks_of_w, group, column / format.values,
                          quant::kPanelValues / format.values);
    return task.records + record * format.record_bytes;
  };
  const bool is_last_pass = first + count == task.num_tokens;
  const auto record_after = [&](int i) {
    return is_last_pass ? task.next[i] : record_of(task.group_begin + i, 0);
  };
  SlabRows<V, kMin> slab[kSlabRowGroups];
  alignas(64) float sums[kTokensPerPass][kSumsStride];
  int exact = task.rounding == Rounding::kExact ? count : task.num_exact - first;
  exact = exact < 0 ? 0 : exact > count ? count : exact;
  const GemmPass in_halves{exact, task.x + first, sums[0]};
  const GemmPass in_digits{count - exact, task.x + first + exact, sums[0] + exact * kSumsStride};
  Halves halves;
  Digits digits;
  if (in_halves.count != 0) Halves::prepare(halves, task.k, in_halves);
  if (in_digits.count != 0) Digits::prepare(digits, task.k, in_digits);
  for (int64_t group = task.group_begin; group < task.group_end; group += kSlabRowGroups) {
    const int64_t left = task.group_end - group;
    const int row_groups = left < kSlabRowGroups ? (int)left : kSlabRowGroups;
    memset(sums, 0, (size_t)count * sizeof sums[0]);
    for (int64_t column = 0; column < task.k; column += kSlabColumns) {
      const int columns = task.k - column < kSlabColumns ? (int)(task.k - column) : kSlabColumns;
      for (int r = 0; r < row_groups; ++r)
        format.unpack(record_of(group + r, column), columns, &slab[r]);
      // Behind the last columns of these rows come the first of the next.
      const bool is_last = column + columns >= task.k;
      const int64_t next = is_last ? group + kSlabRowGroups : group;
      const int64_t next_column = is_last ? 0 : column + columns;
      const bool goes_on = next < task.group_end;
      Prefetcher prefetcher(goes_on ? record_of(next, next_column) : record_after(0),
                            goes_on ? record_of(next + 1, next_column) : record_after(1),
                            kSlabColumns / format.values * format.record_bytes,
                            Halves::steps(in_halves.count) + Digits::steps(in_digits.count));
      const int groups = columns / (4 * V);
      if (in_halves.count != 0)
        Halves::run(halves, slab, row_groups, groups, column, in_halves, prefetcher);
      if (in_digits.count != 0)
        Digits::run(digits, slab, row_groups, groups, column, in_digits, prefetcher);
    }
    for (int r = 0; r < row_groups; ++r)
      for (int t = 0; t < count; ++t)
        store_rows(task, group + r, first + t, load_f(sums[t] + 16 * r));
  }
  if (in_halves.count != 0) Halves::finish(halves);
  if (in_digits.count != 0) Digits::finish(digits);
}

/// Any number of tokens, for the formats of one shape: V words of four values per group.
template <int V, bool kMin, int kChunk>
static void gemm(const MatmulTask& task, const FormatKernels& format) {
  const int passes = (task.num_tokens + kTokensPerPass - 1) / kTokensPerPass;
  for (int i = 0; i < passes; ++i) {
    const int first = (int)((int64_t)task.num_tokens * i / passes);
    const int count = (int)((int64_t)task.num_tokens * (i + 1) / passes) - first;
    gemm_pass<V, kMin, kChunk>(task, format, first, count);
  }
}

template <class Q>
constexpr auto gemm_of() -> void (*)(const MatmulTask&, const FormatKernels&) {
  if constexpr (Q::kGroup == 0)
    return nullptr;
  else
    return &gemm<Q::kGroup / 4, Q::kHasMin, chunk_words(Q::kGroup, Q::kOffset, Q::kMaxU)>;
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
