#include "base/checked.h"

#include <gtest/gtest.h>

namespace kt {
namespace {

constexpr uint64_t kMax = UINT64_MAX;

TEST(Checked, ComputesWhatFits) {
  EXPECT_EQ(checked_add(kMax - 1, 1, "sum"), kMax);
  EXPECT_EQ(checked_mul(1ull << 32, (1ull << 32) - 1, "product"), kMax - ((1ull << 32) - 1));
  EXPECT_EQ(checked_round_up(0, 32, "offset"), 0u);
  EXPECT_EQ(checked_round_up(33, 32, "offset"), 64u);
}

TEST(Checked, RefusesToWrapAndPrintsTheValues) {
  EXPECT_THROW(checked_add(kMax, 1, "sum"), FormatError);
  EXPECT_THROW(checked_mul(1ull << 32, 1ull << 32, "product"), FormatError);
  EXPECT_THROW(checked_round_up(kMax - 3, 32, "offset"), FormatError);
  try {
    checked_mul(kMax, 2, "tensor bytes");
    FAIL() << "no error";
  } catch (const FormatError& error) {
    EXPECT_STREQ(error.what(), "tensor bytes: 18446744073709551615 * 2 overflows");
  }
}

}  // namespace
}  // namespace kt
