// Instantiation of the product for the formats of one file; split over several, as each takes the
// compiler a while.
#pragma once

#include <algorithm>

#include "base/error.h"
#include "cuda/quant_gemv/kernel.h"

namespace kt::cuda {

template <class Source, int kTokenTiles, int kDepth>
bool try_gemv(const GemvParams& p, const GemvTile& tile) {
  using Kernel = QuantGemv<Source, kTokenTiles, kDepth>;
  if (tile.token_tiles != kTokenTiles || tile.depth != kDepth) return false;
  int stages = std::min(Kernel::kMostStages, tile.most_stages);
  while (stages > 1 && Kernel::shared_bytes(stages) > tile.shared_bytes) --stages;
  launch<Kernel>({.grid_x = static_cast<unsigned>(tile.blocks),
                  .grid_y = static_cast<unsigned>(div_up(p.max_tiles, kTokenTiles)),
                  .threads = Kernel::kThreads,
                  .shared_bytes = Kernel::shared_bytes(stages)},
                 {p, stages}, p.stream);
  return true;
}

template <class Source>
bool try_gemv_tiles(const GemvParams& p, const GemvTile& tile) {
  return try_gemv<Source, 1, 8>(p, tile) || try_gemv<Source, 1, 2>(p, tile) ||
         try_gemv<Source, 4, 8>(p, tile) || try_gemv<Source, 4, 2>(p, tile);
}

template <class F>
bool try_gemv_format(const GemvParams& p, const GemvTile& tile) {
  if (p.gguf_id != F::kGgufId) return false;
  if (p.layout == WeightLayout::kR16) return try_gemv_tiles<R16Source<F>>(p, tile);
  if constexpr (sizeof(typename F::Block) % 2 == 0) {
    if (p.layout == WeightLayout::kBlocks) return try_gemv_tiles<BlockSource<F>>(p, tile);
  }
  return false;
}

template <class... Fs>
bool try_gemv_formats(const GemvParams& p, const GemvTile& tile, quant::TypeList<Fs...>) {
  return (try_gemv_format<Fs>(p, tile) || ...);
}

bool launch_gemv_legacy(const GemvParams& p, const GemvTile& tile);  // gemv_legacy.cu, and so on
bool launch_gemv_k(const GemvParams& p, const GemvTile& tile);
bool launch_gemv_iq(const GemvParams& p, const GemvTile& tile);
bool launch_gemv_iq_small(const GemvParams& p, const GemvTile& tile);

}  // namespace kt::cuda
