// Signs of the codebook formats.
#pragma once

#include <stdint.h>

namespace kt::quant {

/// Seven stored signs -> eight: the eighth makes the number of minus signs even.
static inline constexpr int even_signs(int seven) {
  int parity = seven ^ seven >> 4;
  parity ^= parity >> 2;
  parity ^= parity >> 1;
  return seven | (parity & 1) << 7;
}

/// offset + magnitude, or offset - magnitude if bit 0 of `minus` is set.
static inline uint8_t apply_sign(int magnitude, int minus, int offset) {
  return (uint8_t)(minus & 1 ? offset - magnitude : offset + magnitude);
}

}  // namespace kt::quant
