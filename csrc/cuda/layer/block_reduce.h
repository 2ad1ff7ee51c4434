// Sums and maxima over a block, in an order that depends on the block's size only.
#pragma once

#include "cuda/common/device.h"

namespace kt::cuda {

KT_DEVICE float warp_sum(float v) {
  for (unsigned mask = 16; mask; mask /= 2) v += shuffle_xor(v, mask);
  return v;
}
KT_DEVICE float warp_max(float v) {
  for (unsigned mask = 16; mask; mask /= 2) v = max(v, shuffle_xor(v, mask));
  return v;
}

/// `scratch` holds a value per warp. Every thread gets the result.
KT_DEVICE float block_sum(float v, Shared<float> scratch) {
  v = warp_sum(v);
  sync();  // scratch may still be read from the last time
  if (lane_id() == 0) scratch[warp_id()] = v;
  sync();
  float total = 0;
  for (unsigned w = 0; w < block_threads() / 32; ++w) total += scratch[w];
  return total;
}
KT_DEVICE float block_max(float v, Shared<float> scratch) {
  v = warp_max(v);
  sync();
  if (lane_id() == 0) scratch[warp_id()] = v;
  sync();
  float top = scratch[0];
  for (unsigned w = 1; w < block_threads() / 32; ++w) top = max(top, float(scratch[w]));
  return top;
}

}  // namespace kt::cuda
