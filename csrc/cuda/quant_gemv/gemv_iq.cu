#include "cuda/quant_gemv/gemv_launch.h"

namespace kt::cuda {

bool launch_gemv_iq(const GemvParams& p, const GemvTile& tile) {
  using namespace quant;
  return try_gemv_formats(p, tile, TypeList<IQ4_NL, IQ4_XS, MXFP4, NVFP4, IQ3_S>{});
}

}  // namespace kt::cuda
