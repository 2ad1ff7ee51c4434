// Products of many rows on a card: from how many on they pay, and in what pieces they are made.
//
// The kernels of few rows read and decode all weights once per 32 rows. A product that dequantises
// first reads the weights once, writes them as f16 and reads those: 4.6 bytes a weight of Q4_K
// instead of 0.56, and then multiplies at the tensor cores' speed, whatever the rows.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "cuda/gemm/dense_gemm.h"

namespace kt::cuda {

/// Rows from which a product dequantises. At 128, four passes of the kernels of few rows have read
/// half of the bytes and decoded every weight four times; what they gain back in bytes they lose in
/// decoding. It is also where the tile of dense_gemm.h is full. bench.cuda measures both ways;
/// CardShape::dense_rows takes what it says of a card.
constexpr int kDenseRows = 128;

/// Rows up to which a matrix in int4 is multiplied by its own kernel in such steps too: a tile of
/// 64 rows makes few passes over weights that are a quarter of what dequantising writes.
constexpr int kMostInt4Rows = 256;

/// Bytes of dequantised weights at a time, where there is room: a wave of tiles on the largest
/// cards (132 of 128 outputs x 7168 values: 231 MiB), so that few products end in a half-empty one.
constexpr size_t kDenseBytes = size_t{256} << 20;

/// Rows of one expert in a chunk. run.first: its first place in the order of launch_sort; run.out:
/// its first row within the chunk.
struct ExpertPart {
  int expert;
  GemmRun run;
};

/// Cuts experts' rows into chunks of at most most_rows rows and most_experts experts, none empty.
/// counts: of all experts. An expert with more rows stands in several chunks. Throws
/// InvalidArgument.
std::vector<std::vector<ExpertPart>> cut_experts(const std::vector<int>& experts,
                                                 const std::vector<int32_t>& counts, int most_rows,
                                                 int most_experts);

}  // namespace kt::cuda
