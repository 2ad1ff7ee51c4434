// y = x W^T with 16-bit weights: what follows dequantise.h for large batches. One launch is one
// product, several with equal strides between them (a head each), or runs of rows of one x, each
// with weights of its own (an expert's tokens).
#pragma once

#include <stdint.h>

#include "cuda/common/types.h"

namespace kt::cuda {

/// Rows `first` ... of DenseGemmParams::source, as rows `out` ... of y.
struct GemmRun {
  int32_t first, rows, out;
};

struct DenseGemmParams {
  static constexpr int kMostRuns = 16;
  const void* x;          // rows of k values of the type, x_stride apart
  const int32_t* source;  // row of x of every row; null: the same
  const void* weights;    // [n, k]
  void* y;                // rows of n values, y_stride apart: float, or of the type
  int m, n, k;            // k a multiple of 8, n of 2; m: of the longest run, where there are runs
  bool bf16;
  bool float_out;
  Stream stream;
  const float* scales = nullptr;       // [rows of x] factors of its rows, or null; float_out
  int64_t x_stride = 0, y_stride = 0;  // 0: k and n; multiples of 8 and 2
  int products = 1;                    // in one launch
  int64_t x_step = 0, w_step = 0, y_step = 0;  // from a product to the next; of y without runs only
  bool has_runs = false;                       // product i has runs[i]
  GemmRun runs[kMostRuns] = {};
};
/// Throws InvalidArgument.
void launch_dense_gemm(const DenseGemmParams& params);

}  // namespace kt::cuda
