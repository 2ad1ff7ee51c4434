// From the integer view to floats: the one decoder of a format is its unpack_ints; its unpack is
// this function. The float operations are those of the GGUF definition, in its order, and never
// fused: (d * sub-scale), computed by unpack_ints, times the integer, plus the minimum. Where a
// format's definition multiplies by a grid value and then by a sign, the product with the signed
// integer has the same bits, because changing a sign is exact.
#pragma once

#include "base/half.h"

namespace kt::quant {

template <class F>
static inline void unpack_groups(const typename F::Block& block, float* out) {
  constexpr int kGroups = F::kValues / F::kGroup;
  uint8_t u[F::kValues];
  float scale[kGroups];
  float min[kGroups];
  unpack_ints(block, u, scale, min);
  for (int g = 0; g < kGroups; ++g) {
    for (int i = g * F::kGroup; i < (g + 1) * F::kGroup; ++i) {
      out[i] = scale[g] * (float)((int)u[i] - F::kOffset);
      if constexpr (F::kHasMin) out[i] += min[g];
    }
  }
}

}  // namespace kt::quant
