// The end of a row group's sums: to the rows there are.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/kernels/simd_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

KT_INLINE void store_rows(const MatmulTask& task, int64_t group, int token, F sums) {
  const int64_t row = group * 16;
  float* y = task.y[token] + (row - task.group_begin * 16);
  if (task.rows - row >= 16)
    store_f(y, sums);
  else
    store_f_tail(y, sums, task.rows - row);
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
