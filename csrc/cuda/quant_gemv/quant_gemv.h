// y = x W^T on quantised weights as they are stored: R16 records (the bytes the CPU computes with),
// a file's own blocks, or FP8 with a scale per 128 x 128. For few tokens; large batches dequantise
// first (dequantise.h). Dense products and grouped ones (experts) are the same launch: a list of
// items, each a matrix and a run of tokens.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "cuda/common/types.h"

namespace kt::cuda {

/// Activations as the kernel reads them, made by launch_prepare. Tokens stand in tiles of 8:
///   fragments  [tile][k / 16][lane][4]  half_t, lane l holding token l / 4, k = 4 (l % 4) ... + 3,
///              divided by the token's scale, a power of two that brings its largest value to 1..2
///   sums       [tile][k / 16][8]        float: sums of 16 values, in the token's own unit
///   scales     [tile][8]                float
struct Prepared {
  half_t* fragments;
  float* sums;
  float* scales;
};
constexpr size_t prepared_fragments(int tiles, int k) { return size_t(tiles) * k * 8; }
constexpr size_t prepared_sums(int tiles, int k) { return size_t(tiles) * k / 16 * 8; }

struct PrepareParams {
  const void* x;   // [rows, stride] of `type`; a row's k values at its begin
  const void* up;  // like x: silu(x) * up is prepared; null: x itself
  int64_t stride;
  const int32_t* source;  // [8 tiles] row of x of every slot, -1: none; null: slot i is row i
  Prepared out;
  int rows, k, tiles;
  uint8_t type;  // 0 float, 1 f16, 2 bf16
  Stream stream;
  bool in_place = false;  // slot i is row i where source[i] >= 0: results of grouped products
};
/// k a multiple of 32; the last run of 256 is padded with zeros by the kernels themselves.
void launch_prepare(const PrepareParams& params);

/// One matrix and the tiles of tokens it multiplies. In device memory.
struct GemvItem {
  const uint8_t* weights;
  const float* block_scales;  // FP8: [n / 128, k / 128], else null
  int32_t first_tile;
  int32_t tiles;
};

/// kRows: rows of F32, F16 or BF16 (float_gemv.cu).
enum class WeightLayout : uint8_t { kR16, kBlocks, kFp8, kRows };

struct GemvParams {
  const GemvItem* items;     // [max_items]
  const int32_t* num_items;  // how many there are this time; null: max_items
  Prepared x;
  float* y;  // [8 tiles, n]: a row per slot; slots without a token give zeros
  int max_items;
  int max_tiles;  // most tiles of an item
  int n, k;
  int gguf_id;  // but for kFp8
  WeightLayout layout;
  Stream stream;
};

/// How a block's 8 warps are dealt out: `depth` of them share 16 rows and split k.
struct GemvTile {
  int token_tiles;  // 1, 2 or 4: tokens of a pass, in tiles of 8
  int depth;        // 8 or 2
  int blocks;
  int most_stages;        // chunks of weights that a warp has in shared memory, 1 to 4; fewer
  unsigned shared_bytes;  // where they take more than this, which a block may have
};
/// Throws Unsupported for a GGUF type that has no kernel in R16 or, of floats, in rows.
void check_gemv_format(int gguf_id);
/// For a card with `sms` multiprocessors of compute capability `arch` (90 for 9.0). Throws
/// InvalidArgument for shapes, Unsupported for formats without a kernel.
GemvTile choose_gemv_tile(const GemvParams& params, int sms, int arch);
void launch_quant_gemv(const GemvParams& params, const GemvTile& tile);

}  // namespace kt::cuda
