#include "cuda/quant_gemv/gemv_launch.h"

namespace kt::cuda {

bool launch_gemv_k(const GemvParams& p, const GemvTile& tile) {
  using namespace quant;
  return try_gemv_formats(p, tile, TypeList<Q2_K, Q3_K, Q4_K, Q5_K, Q6_K>{});
}

}  // namespace kt::cuda
