// Quantised weights -> f16 or bf16 rows, for batches large enough to pay for it.
#pragma once

#include <stdint.h>

#include "cuda/common/types.h"
#include "cuda/quant_gemv/quant_gemv.h"

namespace kt::cuda {

struct DequantiseParams {
  const uint8_t* weights;     // in `layout`
  const float* block_scales;  // FP8: [n / 128, k / 128]
  void* out;                  // [rows, k] row-major
  int n, k;
  int gguf_id;
  WeightLayout layout;
  bool to_bf16;
  Stream stream;
  int first = 0, rows = 0;  // rows first ... of the n, first a multiple of 16; rows 0: all of them
};
/// Throws InvalidArgument, Unsupported. F32, F16 and BF16 in rows are rounded likewise.
void launch_dequantise(const DequantiseParams& params);

}  // namespace kt::cuda
