// Conversions to and from the 16-bit float formats, against the compiler's own _Float16 and, for
// bfloat16, against rounding in double.
#include "base/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace kt {
namespace {

#if !defined(__FLT16_MAX__)
#error "these tests compare with _Float16, which this compiler does not have"
#endif

uint16_t bits_of(_Float16 value) {
  uint16_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

_Float16 from_bits(uint16_t bits) {
  _Float16 value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

TEST(Half, EveryHalfWidensExactly) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float expected = static_cast<float>(from_bits(static_cast<uint16_t>(bits)));
    const float actual = half_to_float(static_cast<uint16_t>(bits));
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(actual)) << bits;
    } else {
      ASSERT_EQ(float_to_bits(actual), float_to_bits(expected)) << bits;
    }
  }
}

TEST(Half, EveryHalfComesBack) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float wide = half_to_float(half);
    if (std::isnan(wide)) {
      const uint16_t back = float_to_half(wide);
      ASSERT_TRUE(std::isnan(half_to_float(back))) << bits;
      ASSERT_EQ(back & 0x8200, (half & 0x8000) | 0x0200) << bits;  // sign kept, quiet
    } else {
      ASSERT_EQ(float_to_half(wide), half) << bits;
    }
  }
}

// Rounding: between every two neighbouring halves the midpoint and its float neighbours.
TEST(Half, RoundsToNearestEvenEverywhere) {
  for (uint32_t bits = 0; bits < 0x7C00; ++bits) {
    const double low = half_to_float(static_cast<uint16_t>(bits));
    const double high =
        bits + 1 == 0x7C00 ? 65536.0 : half_to_float(static_cast<uint16_t>(bits + 1));
    const auto middle = static_cast<float>((low + high) / 2);
    for (const float value :
         {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, 1e30f)}) {
      for (const float signed_value : {value, -value}) {
        const uint16_t expected = bits_of(static_cast<_Float16>(signed_value));
        ASSERT_EQ(float_to_half(signed_value), expected) << signed_value;
      }
    }
  }
}

TEST(Half, RandomFloatsAgreeWithTheCompiler) {
  std::mt19937 random(11);
  for (int i = 0; i < 2000000; ++i) {
    const float value = bits_to_float(static_cast<uint32_t>(random()));
    if (std::isnan(value)) continue;
    ASSERT_EQ(float_to_half(value), bits_of(static_cast<_Float16>(value))) << value;
  }
}

TEST(BFloat16, EveryOneComesBack) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float wide = bf16_to_float(half);
    ASSERT_EQ(float_to_bits(wide), bits << 16);
    if (std::isnan(wide)) {
      ASSERT_TRUE(std::isnan(bf16_to_float(float_to_bf16(wide)))) << bits;
    } else {
      ASSERT_EQ(float_to_bf16(wide), half) << bits;
    }
  }
}

TEST(BFloat16, RoundsToNearestEvenEverywhere) {
  const auto nearest = [](float value) {  // by comparing distances in double
    const auto below = static_cast<uint16_t>(float_to_bits(value) >> 16);  // towards zero
    const auto above = static_cast<uint16_t>(below + 1);
    const bool overflows = (above & 0x7FFF) == 0x7F80;
    const double far =
        overflows ? std::copysign(std::ldexp(1.0, 128), value) : bf16_to_float(above);
    const double down = std::abs(double{value} - bf16_to_float(below));
    const double up = std::abs(far - value);
    return down != up ? (down < up ? below : above) : (below & 1 ? above : below);
  };
  std::mt19937 random(12);
  for (int i = 0; i < 2000000; ++i) {
    uint32_t bits = static_cast<uint32_t>(random());
    if (i % 4 == 0) bits = (bits & 0xFFFF0000u) | 0x8000u;  // ties
    const float value = bits_to_float(bits);
    if (!std::isfinite(value)) continue;
    ASSERT_EQ(float_to_bf16(value), nearest(value)) << value;
  }
  EXPECT_EQ(float_to_bf16(INFINITY), 0x7F80);
  EXPECT_EQ(float_to_bf16(-INFINITY), 0xFF80);
  // A NaN whose payload lies in the cut half must not become infinity.
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(bits_to_float(0x7F800001u)))));
}

}  // namespace
}  // namespace kt
