#include "cuda/attention/kernel.h"

namespace kt::cuda {

// 512 latent values and a rotated key of 64; rows are heads, so 16 at a time where they are few.
bool launch_flash_mla(const FlashParams& p, const FlashTile& tile) {
  return try_flash_types<576, 512, true, 16, 64, 2>(p, tile) ||
         try_flash_types<576, 512, true, 16, 64, 1>(p, tile) ||
         try_flash_types<576, 512, true, 16, 32, 1>(p, tile);
}

}  // namespace kt::cuda
