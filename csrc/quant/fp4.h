// The 4-bit float E2M1 of MXFP4 and NVFP4: one sign, two exponent bits, one mantissa bit.
#pragma once

#include <stdint.h>

namespace kt::quant {

/// Twice the value of every code, plus 12 so that it counts from 0. Code 8, minus zero, reads as 0.
static constexpr uint8_t kFp4Levels[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                           12, 11, 10, 9,  8,  6,  4,  0};

}  // namespace kt::quant
