#include "cuda/int4_gemm/grouped.h"

#include "base/error.h"
#include "cuda/int4_gemm/kernel.h"

namespace kt::cuda {

namespace {

template <int kTileN, int kStages, bool kOffsets>
bool try_grouped(const Int4GroupedParams& p, const Int4Tile& tile) {
  using Kernel = Int4Gemm<half_t, 1, kTileN, kStages, kOffsets, true>;
  static_assert(Kernel::kRows == 8 * kInt4ItemTiles);
  if (tile.tile_n != kTileN || tile.stages != kStages || p.matrix.has_offsets != kOffsets)
    return false;
  typename Kernel::Params params{};
  p.matrix.set(params.p, nullptr);
  params.p.x = p.x, params.p.y = p.y, params.p.row_scales = p.row_scales;
  params.p.workspace = p.workspace, params.p.counters = p.counters;
  params.items = p.items, params.num_items = p.num_items;
  params.scales_at = static_cast<int64_t>(p.matrix.weight_bytes());
  params.offsets_at = params.scales_at + static_cast<int64_t>(p.matrix.scale_bytes());
  launch<Kernel>({.grid_x = static_cast<unsigned>(tile.blocks),
                  .threads = Kernel::kThreads,
                  .shared_bytes = Kernel::kSharedBytes},
                 params, p.stream);
  return true;
}

template <int kStages>
bool try_stages(const Int4GroupedParams& p, const Int4Tile& tile) {
  return try_grouped<128, kStages, false>(p, tile) || try_grouped<128, kStages, true>(p, tile) ||
         try_grouped<256, kStages, false>(p, tile) || try_grouped<256, kStages, true>(p, tile);
}

}  // namespace

void launch_int4_grouped(const Int4GroupedParams& p, const Int4Tile& tile) {
  KT_CHECK(p.max_items > 0 && tile.blocks > 0, "products of ", p.max_items, " matrices by ",
           tile.blocks, " blocks");
  const PlacedInt4& m = p.matrix;
  placed_int4(m.type(), m.n, m.k);
  const bool done = tile.row_tiles == 1 && (try_stages<4>(p, tile) || try_stages<2>(p, tile));
  KT_CHECK(done, "no grouped int4 kernel of ", tile.row_tiles, " x 16 rows, ", tile.tile_n,
           " columns and ", tile.stages, " stages");
}

}  // namespace kt::cuda
