// y = x W^T with 16-bit weights: what follows dequantise.h for large batches, and grouped products
// of prompts (an expert's tokens at a time).
#pragma once

#include <stdint.h>

#include "cuda/common/types.h"

namespace kt::cuda {

struct DenseGemmParams {
  const void* x;          // [rows, k] of the type
  const int32_t* source;  // [m] row of x of every row of y; null: the same
  const void* weights;    // [n, k]
  void* y;                // [m, n]: float, or of the type
  int m, n, k;            // k a multiple of 8, n of 2
  bool bf16;
  bool float_out;
  Stream stream;
};
/// Throws InvalidArgument.
void launch_dense_gemm(const DenseGemmParams& params);

}  // namespace kt::cuda
