// A kernel table's row for each of some formats, as a constant.
#pragma once

#include "cpu/kernel_table.h"
#include "quant/list.h"

namespace kt::cpu::KT_ISA {
namespace {

template <int n>
struct FormatTable {
  static constexpr int kCount = n;
  FormatKernels rows[n];
};

/// {row(Q{}) for each of the formats Q}, in their order.
template <class Row, class... Qs>
constexpr FormatTable<(int)sizeof...(Qs)> make_formats(quant::TypeList<Qs...>, Row row) {
  return {{row(Qs{})...}};
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
