#include "cuda/quant_gemv/gemv_launch.h"

namespace kt::cuda {

bool launch_gemv_legacy(const GemvParams& p, const GemvTile& tile) {
  if (p.layout == WeightLayout::kFp8) return try_gemv_tiles<Fp8Source>(p, tile);
  using namespace quant;
  return try_gemv_formats(p, tile, TypeList<Q4_0, Q4_1, Q5_0, Q5_1, Q8_0>{});
}

}  // namespace kt::cuda
