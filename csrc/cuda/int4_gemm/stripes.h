// Who computes what: the units of all tiles in one row, cut into equal stripes, one per block. Used
// by the kernel and by its tests.
#pragma once

#include "cuda/common/device.h"

namespace kt::cuda {

/// A stripe shorter than that would spend more on its partial sums than on weights.
constexpr int kLeastUnits = 4;

struct Stripes {
  int tiles;       // output tiles
  int tile_units;  // units per tile
  int per_block;   // units per block

  KT_HOST_DEVICE int first_block(int tile) const {
    return static_cast<int>(static_cast<int64_t>(tile) * tile_units / per_block);
  }
  KT_HOST_DEVICE int last_block(int tile) const {
    return static_cast<int>((static_cast<int64_t>(tile + 1) * tile_units - 1) / per_block);
  }
  /// Blocks that compute a part of the tile; 1: no partial sums.
  KT_HOST_DEVICE int participants(int tile) const {
    return last_block(tile) - first_block(tile) + 1;
  }
  /// A block has at most two partial tiles, the one its stripe begins in and the one it ends in.
  /// Where in the workspace the block keeps its part of the tile, in tiles.
  KT_HOST_DEVICE int slot(int block, int tile) const {
    const int64_t begin = static_cast<int64_t>(block) * per_block;
    return 2 * block + (static_cast<int64_t>(tile) * tile_units > begin ? 1 : 0);
  }
};

}  // namespace kt::cuda
