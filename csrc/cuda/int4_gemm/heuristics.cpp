// Tile choice, host code only: tested over a sweep of shapes on machines without a GPU.
#include <algorithm>

#include "base/error.h"
#include "cuda/int4_gemm/grouped.h"
#include "cuda/int4_gemm/int4_gemm.h"
#include "cuda/int4_gemm/stripes.h"

namespace kt::cuda {

namespace {

int64_t tile_count(const Int4GemmParams& p, const Int4Tile& tile) {
  return int64_t{div_up(p.n, tile.tile_n)} * div_up(p.m, 16 * tile.row_tiles);
}

/// Wide tiles use a loaded row of x for more columns; narrow ones waste less at the right edge.
int width_of(int n, int row_tiles) {
  const int waste = round_up(n, 256) - round_up(n, 128);
  return row_tiles == 1 && (n <= 128 || waste * 8 > n) ? 128 : 256;
}

/// Turing has 64 KiB of shared memory per block, and nothing to overlap copies with.
int stages_of(int arch) { return arch < 80 ? 2 : 4; }

/// One stripe per resident block; two blocks of the smallest tile fit a multiprocessor.
int block_count(int64_t units, int row_tiles, int sms, int arch) {
  const int resident = sms * (row_tiles == 1 && arch != 75 ? 2 : 1);
  return static_cast<int>(
      std::min<int64_t>(resident, std::max<int64_t>(1, div_up<int64_t>(units, kLeastUnits))));
}

}  // namespace

Int4Tile choose_int4_tile(const Int4GemmParams& p, int sms, int arch) {
  KT_CHECK(p.m > 0 && p.n > 0 && p.k > 0, "empty product ", p.m, " x ", p.n, " x ", p.k);
  KT_CHECK(p.k % 64 == 0, "k=", p.k, " must be a multiple of 64");
  KT_CHECK(p.row_scales || p.n % 8 == 0, "n=", p.n, " must be a multiple of 8");
  KT_CHECK(is_int4_group(p.group), "group=", p.group, " must be 32, 64 or 128");
  KT_CHECK(p.k % p.group == 0, "k=", p.k, " must be a multiple of the group of ", p.group);
  KT_CHECK(sms > 0, "a card with ", sms, " multiprocessors");
  if (arch < 80 && p.type == FloatType::kBf16)
    throw Unsupported(concat("compute capability ", arch / 10, ".", arch % 10,
                             " has no bf16 arithmetic; use f16"));
  Int4Tile tile{};
  // As many rows as there are: fewer passes over the weights. Beyond 64 the sums leave no
  // registers, and beyond 32 they take more than Turing's shared memory.
  tile.row_tiles = p.m <= 16 ? 1 : p.m <= 32 || arch < 80 ? 2 : 4;
  tile.tile_n = width_of(p.n, tile.row_tiles);
  tile.stages = stages_of(arch);
  tile.blocks = block_count(tile_count(p, tile) * (p.k / 64), tile.row_tiles, sms, arch);
  return tile;
}

Int4Tile choose_int4_grouped_tile(const PlacedInt4& m, int max_items, int sms, int arch) {
  KT_CHECK(max_items > 0 && sms > 0, "products of ", max_items, " matrices on ", sms,
           " multiprocessors");
  const int width = width_of(m.n, 1);
  const int64_t units = int64_t{max_items} * div_up(m.n, width) * (m.k / 64);
  return {1, width, stages_of(arch), block_count(units, 1, sms, arch)};
}

int int4_grouped_counters(const PlacedInt4& m, int max_items, const Int4Tile& tile) {
  return max_items * div_up(m.n, tile.tile_n);
}

size_t int4_workspace_bytes(const Int4Tile& tile) {
  return size_t{2} * tile.blocks * 16 * tile.row_tiles * tile.tile_n * sizeof(float);
}

int int4_counters(const Int4GemmParams& p, const Int4Tile& tile) {
  return static_cast<int>(tile_count(p, tile));
}

}  // namespace kt::cuda
