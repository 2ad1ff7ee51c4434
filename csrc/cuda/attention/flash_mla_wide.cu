#include "cuda/attention/kernel.h"

namespace kt::cuda {

// 64 heads read a tile of the cache once; and the small latent of the test model.
bool launch_flash_mla_wide(const FlashParams& p, const FlashTile& tile) {
  return try_flash_types<576, 512, true, 64, 64, 1>(p, tile) ||
         try_flash_types<288, 256, true, 16, 64, 1>(p, tile);
}

}  // namespace kt::cuda
