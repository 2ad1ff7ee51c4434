// Conversions between float and the two 16-bit formats, exact and in portable integer arithmetic.
//
// Free `static inline` functions without any library type: this header is also compiled into the
// per-ISA kernel objects, where a shared weak symbol could carry one ISA's code into another.
#pragma once

#include <stdint.h>
#include <string.h>

namespace kt {

static inline float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

/// IEEE 754 binary16 -> binary32, exact for every input, subnormals, infinities and NaN included.
static inline float half_to_float(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1Fu;
  const uint32_t mantissa = half & 0x3FFu;
  if (exponent == 0x1Fu) return bits_to_float(sign | 0x7F800000u | (mantissa << 13));
  if (exponent != 0) return bits_to_float(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  // Subnormal: mantissa * 2^-24 is exact in binary32.
  const float magnitude = (float)mantissa * 5.9604644775390625e-8f;
  return bits_to_float(sign | float_to_bits(magnitude));
}

/// binary32 -> binary16, round to nearest even; overflow gives infinity, NaN stays a quiet NaN.
static inline uint16_t float_to_half(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return (uint16_t)(sign | 0x7E00u);
  if (magnitude >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u);  // rounds to 65536 or more
  if (magnitude >= 0x38800000u) {                                   // normal in binary16
    const uint32_t rebased = magnitude - 0x38000000u;
    return (uint16_t)(sign | ((rebased + 0xFFFu + ((rebased >> 13) & 1u)) >> 13));
  }
  // Subnormal: adding 0.5 makes the float adder do the rounding to a multiple of 2^-24.
  const float shifted = bits_to_float(magnitude) + 0.5f;
  return (uint16_t)(sign | (uint16_t)(float_to_bits(shifted) - 0x3F000000u));
}

static inline float bf16_to_float(uint16_t value) { return bits_to_float((uint32_t)value << 16); }

/// binary32 -> bfloat16, round to nearest even; NaN stays a quiet NaN.
static inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = float_to_bits(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)((bits >> 16) | 0x40u);
  return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace kt
