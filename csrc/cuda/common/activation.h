// Rows of activations on their way to tensor cores: what is read, and by what it is divided.
#pragma once

#include "cuda/common/device.h"

namespace kt::cuda {

/// Values of x from `begin` on, or silu(x) * up where there is `up`.
template <class T>
struct ActivatedRow {
  const void *x, *up;
  int64_t begin;
  KT_DEVICE float operator()(int i) const {
    const float value = to_float(T(Global<const T>(static_cast<const T*>(x))[begin + i]));
    if (!up) return value;
    const float factor = to_float(T(Global<const T>(static_cast<const T*>(up))[begin + i]));
    return value / (1.0f + exp_fast(-value)) * factor;
  }
};

/// The power of two at or below a row's largest magnitude, and its inverse. Tiny rows are not
/// scaled up without end.
struct RowScale {
  float scale, inverse;
};
KT_DEVICE RowScale row_scale(float largest) {
  const uint32_t exponent = max(static_cast<int>(bits_of(largest) >> 23 & 255), 27);
  return {float_of(exponent << 23), float_of((254 - exponent) << 23)};
}

}  // namespace kt::cuda
