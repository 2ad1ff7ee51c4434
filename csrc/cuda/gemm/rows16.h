// Activations of many rows on their way into a product with tensor cores: f16 rows, each divided by
// a power of two that brings its largest value to 1..2, as quant_gemv.h prepares them for few rows.
#pragma once

#include <stdint.h>

#include "cuda/common/types.h"

namespace kt::cuda {

struct Rows16Params {
  const void* x;   // [rows, stride] of `type`; a row's k values at its begin
  const void* up;  // like x: silu(x) * up is taken; null: x itself
  int64_t stride;
  half_t* out;    // [rows, k]
  float* scales;  // [rows]
  int rows, k;    // k even
  uint8_t type;   // 0 float, 1 f16, 2 bf16
  Stream stream;
  const int32_t* source = nullptr;  // [rows] row of x of every row, -1: zeros; null: the same
  bool in_place = false;  // row i is row i where source[i] >= 0: results of grouped products
};
/// Throws InvalidArgument.
void launch_rows16(const Rows16Params& params);

}  // namespace kt::cuda
