#include "cuda/attention/kernel.h"

namespace kt::cuda {

bool launch_flash_gqa(const FlashParams& p, const FlashTile& tile) {
  return try_flash_types<64, 64, false, 16, 64, 2>(p, tile) ||
         try_flash_types<64, 64, false, 64, 64, 2>(p, tile) ||
         try_flash_types<128, 128, false, 16, 64, 2>(p, tile) ||
         try_flash_types<128, 128, false, 64, 64, 2>(p, tile) ||
         try_flash_f16<128, 128, false, 16, 64, 1>(p, tile) ||  // Turing's
         try_flash_f16<128, 128, false, 64, 64, 1>(p, tile) ||
         try_flash_types<192, 128, false, 16, 64, 1>(p, tile) ||
         try_flash_types<192, 128, false, 64, 64, 1>(p, tile) ||
         try_flash_types<96, 64, false, 16, 64, 2>(p, tile);
}

}  // namespace kt::cuda
