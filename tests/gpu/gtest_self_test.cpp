// The stand-in for GoogleTest, tested by what it reports (tests/python/test_gpu_check.py).
#include <gtest/gtest.h>

#include <stdexcept>

namespace {

int calls = 0;
int next() { return ++calls; }

TEST(Good, ArgumentsAreEvaluatedOnce) {
  EXPECT_EQ(next(), 1);
  ASSERT_LE(next(), 2);
  EXPECT_NEAR(next(), 3, 0.1);
  EXPECT_THROW(throw std::runtime_error("x"), std::runtime_error);
  EXPECT_NO_THROW(next());
  if (calls == 4)
    EXPECT_TRUE(true);
  else
    FAIL() << "evaluated " << calls << " times";
}
TEST(Bad, AnExpectationGoesOn) {
  EXPECT_EQ(1, 2) << "first";
  EXPECT_FALSE(true) << "second";
}
TEST(Bad, AnAssertionDoesNot) {
  ASSERT_TRUE(1 > 2) << "third";
  EXPECT_TRUE(false) << "never said";
}
TEST(Bad, AnExceptionIsAFailure) { throw std::runtime_error("thrown"); }
TEST(Bad, NothingIsThrown) { EXPECT_THROW(next(), std::runtime_error); }
TEST(Bad, SomethingIsThrown) { EXPECT_NO_THROW(throw std::runtime_error("fourth")); }
TEST(Bad, NaNIsNear) { EXPECT_NEAR(std::nan(""), 0, 1); }
TEST(Skipped, WithAReason) {
  GTEST_SKIP() << "no card";
  FAIL();
}

}  // namespace
