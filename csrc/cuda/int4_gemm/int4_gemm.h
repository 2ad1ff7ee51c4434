// y = x W^T with 4-bit weights, in the manner of Marlin (Frantar et al., arXiv 2408.11743): weights
// shuffled offline into tensor-core fragments (pack.h), streamed past the L2 cache, split over the
// machine in stripes.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "cuda/common/types.h"

namespace kt::cuda {

enum class FloatType : uint8_t { kF16, kBf16 };

/// Values of k that can share a scale.
constexpr bool is_int4_group(int group) { return group == 32 || group == 64 || group == 128; }

struct Int4GemmParams {
  const void* x;           // [m, k] of `type`, row-major
  const uint8_t* weights;  // PackedInt4::weights
  const void* scales;      // PackedInt4::scales, of `type`
  const void* offsets;     // PackedInt4::offsets, of `type`; null: symmetric
  void* y;                 // [m, n] of `type`, row-major; float where there are row_scales
  float* workspace;        // int4_workspace_bytes; need not be initialised
  int32_t* counters;       // int4_counters values, zero before the first launch, zero after each
  int m, n, k;             // k a multiple of 64, n of 8 unless there are row_scales
  int group;               // 32, 64 or 128 values of k share a scale
  FloatType type;
  Stream stream;
  const float* row_scales = nullptr;  // [m] what rows of x were divided by (gemm/rows16.h), or null
};

/// How a product is cut. A tile is 16 row_tiles x tile_n outputs; the units of work (64 values of k
/// of one tile) are dealt out to `blocks` blocks in contiguous stripes.
struct Int4Tile {
  int row_tiles;  // 1, 2 or 4
  int tile_n;     // 128 or 256
  int stages;     // 4, or 2 where a block has 64 KiB of shared memory
  int blocks;
};

/// The tile for a product on a card with `sms` multiprocessors of compute capability `arch` (90 for
/// 9.0). Throws InvalidArgument for shapes the kernel cannot take, Unsupported for bf16 on sm_75.
Int4Tile choose_int4_tile(const Int4GemmParams& params, int sms, int arch);

/// Bytes of workspace and number of counters a tile choice needs.
size_t int4_workspace_bytes(const Int4Tile& tile);
int int4_counters(const Int4GemmParams& params, const Int4Tile& tile);

/// Launches; neither allocates nor synchronises. Throws InvalidArgument, CudaError.
void launch_int4_gemm(const Int4GemmParams& params, const Int4Tile& tile);

}  // namespace kt::cuda
