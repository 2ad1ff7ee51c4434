// int4 weights -> f16 rows, for the products of prompts.
#pragma once

#include "cuda/int4_gemm/int4_gemm.h"

namespace kt::cuda {

struct DequantiseInt4Params {
  const uint8_t* weights;  // as in Int4GemmParams, f16
  const void* scales;
  const void* offsets;
  half_t* out;  // [rows, k] row-major
  int n, k, group;
  int first, rows;  // of the n
  Stream stream;
};
/// The very values launch_int4_gemm multiplies by. Throws InvalidArgument.
void launch_dequantise_int4(const DequantiseInt4Params& params);

}  // namespace kt::cuda
