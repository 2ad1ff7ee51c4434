#include "base/error.h"
#include "cuda/int4_gemm/kernel.h"

namespace kt::cuda {

namespace {

template <class T, int kRowTiles, int kTileN, int kStages, bool kOffsets>
bool try_launch(const Int4GemmParams& p, const Int4Tile& tile) {
  using Kernel = Int4Gemm<T, kRowTiles, kTileN, kStages, kOffsets>;
  if (tile.row_tiles != kRowTiles || tile.tile_n != kTileN || tile.stages != kStages ||
      (p.offsets != nullptr) != kOffsets)
    return false;
  typename Kernel::Params params{p, {}, div_up(p.m, Kernel::kRows)};
  params.stripes.tiles = div_up(p.n, kTileN) * params.row_blocks;
  params.stripes.tile_units = p.k / Kernel::kUnit;
  const int64_t units = int64_t{params.stripes.tiles} * params.stripes.tile_units;
  params.stripes.per_block = static_cast<int>(div_up<int64_t>(units, tile.blocks));
  const unsigned blocks = static_cast<unsigned>(div_up<int64_t>(units, params.stripes.per_block));
  launch<Kernel>(
      {.grid_x = blocks, .threads = Kernel::kThreads, .shared_bytes = Kernel::kSharedBytes}, params,
      p.stream);
  return true;
}

/// The tiles compiled; heuristics.cpp chooses among the same.
template <class T, int kStages, bool kOffsets>
bool try_tiles(const Int4GemmParams& p, const Int4Tile& tile) {
  if constexpr (kStages > 2)
    if (try_launch<T, 4, 256, kStages, kOffsets>(p, tile)) return true;
  return try_launch<T, 1, 128, kStages, kOffsets>(p, tile) ||
         try_launch<T, 1, 256, kStages, kOffsets>(p, tile) ||
         try_launch<T, 2, 256, kStages, kOffsets>(p, tile);
}

template <class T, int kStages>
bool try_offsets(const Int4GemmParams& p, const Int4Tile& tile) {
  return try_tiles<T, kStages, false>(p, tile) || try_tiles<T, kStages, true>(p, tile);
}

}  // namespace

void launch_int4_gemm(const Int4GemmParams& p, const Int4Tile& tile) {
  const bool done = p.type == FloatType::kBf16
                        ? try_offsets<bf16_t, 4>(p, tile)
                        : try_offsets<half_t, 4>(p, tile) || try_offsets<half_t, 2>(p, tile);
  KT_CHECK(done, "no int4 kernel of ", tile.row_tiles, " x 16 rows, ", tile.tile_n, " columns and ",
           tile.stages, " stages");
}

}  // namespace kt::cuda
