// Products of several int4 matrices of one shape, each with at most 16 rows of its own: the experts
// that a step's tokens chose. Which they are, the device knows; addresses come from a list.
#pragma once

#include "cuda/int4_gemm/int4_gemm.h"
#include "cuda/int4_gemm/placed.h"
#include "cuda/quant_gemv/quant_gemv.h"

namespace kt::cuda {

/// Tiles of 8 rows that an item may have.
constexpr int kInt4ItemTiles = 2;

struct Int4GroupedParams {
  const GemvItem* items;     // [max_items] weights: as placed.h has them; no block_scales
  const int32_t* num_items;  // [1] how many there are this time
  const half_t* x;           // [8 tiles, k] row-major: an item's rows from 8 first_tile on
  const float* row_scales;   // [8 tiles] what rows of x were divided by (gemm/rows16.h)
  float* y;                  // [8 tiles, n]; rows of no item are not written
  float* workspace;          // int4_workspace_bytes; need not be initialised
  int32_t* counters;         // int4_grouped_counters, zero before the first launch, and after each
  int max_items;
  PlacedInt4 matrix;  // what they are alike in
  Stream stream;
};

/// The tile on a card with `sms` multiprocessors of compute capability `arch`, for at most so many
/// items: always with row_tiles 1. Throws InvalidArgument.
Int4Tile choose_int4_grouped_tile(const PlacedInt4& matrix, int max_items, int sms, int arch);
int int4_grouped_counters(const PlacedInt4& matrix, int max_items, const Int4Tile& tile);

/// Launches; neither allocates nor synchronises. Throws InvalidArgument, CudaError.
void launch_int4_grouped(const Int4GroupedParams& params, const Int4Tile& tile);

}  // namespace kt::cuda
