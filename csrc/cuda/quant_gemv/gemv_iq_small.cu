#include "cuda/quant_gemv/gemv_launch.h"

namespace kt::cuda {

bool launch_gemv_iq_small(const GemvParams& p, const GemvTile& tile) {
  using namespace quant;
  return try_gemv_formats(p, tile, TypeList<IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS>{});
}

}  // namespace kt::cuda
