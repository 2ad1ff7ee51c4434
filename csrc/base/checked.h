// Unsigned 64-bit arithmetic that refuses to wrap. Every size that comes from a file goes through it.
#pragma once

#include <cstdint>

#include "base/error.h"

namespace kt {

/// a + b; throws FormatError naming `what` if the sum does not fit 64 bits.
inline uint64_t checked_add(uint64_t a, uint64_t b, const char* what) {
  uint64_t sum;
  KT_CHECK_FORMAT(!__builtin_add_overflow(a, b, &sum), what, ": ", a, " + ", b, " overflows");
  return sum;
}

/// a * b; throws FormatError naming `what` if the product does not fit 64 bits.
inline uint64_t checked_mul(uint64_t a, uint64_t b, const char* what) {
  uint64_t product;
  KT_CHECK_FORMAT(!__builtin_mul_overflow(a, b, &product), what, ": ", a, " * ", b, " overflows");
  return product;
}

/// The smallest multiple of `alignment` (a power of two) that is >= value; throws on overflow.
inline uint64_t checked_round_up(uint64_t value, uint64_t alignment, const char* what) {
  return checked_add(value, alignment - 1, what) & ~(alignment - 1);
}

}  // namespace kt
