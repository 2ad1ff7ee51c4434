// Rotary embedding against rotation of complex numbers in double.
#include <gtest/gtest.h>

#include <cmath>
#include <complex>
#include <random>
#include <vector>

#include "cpu/ops/attention.h"

namespace kt::cpu {
namespace {

Rope make_rope(int dim, bool interleaved, float scaling = 1.0f) {
  Rope rope;
  for (int i = 0; i < dim / 2; ++i)
    rope.inv_freq.push_back(static_cast<float>(std::pow(10000.0, -2.0 * i / dim)));
  rope.interleaved = interleaved;
  rope.attention_scaling = scaling;
  return rope;
}

std::vector<float> random_vector(int n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> x(n);
  for (float& value : x) value = normal(random);
  return x;
}

class RopeKinds : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Interleaved, RopeKinds, ::testing::Bool());

TEST_P(RopeKinds, RotatesPairsByPositionTimesFrequency) {
  for (const int dim : {2, 6, 64, 128}) {
    const Rope rope = make_rope(dim, GetParam(), 1.25f);
    ASSERT_EQ(rope.dim(), dim);
    const int half = dim / 2;
    std::vector<float> cos(half), sin(half);
    for (const int32_t position : {0, 1, 63, 64, 1000, 131071}) {
      const std::vector<float> x = random_vector(dim, dim);
      // Two values behind the rotary part stay as they are.
      std::vector<float> out = x;
      out.insert(out.end(), {7, 8});
      rope.angles(position, cos.data(), sin.data());
      rope.rotate(cos.data(), sin.data(), out.data());
      for (int i = 0; i < half; ++i) {
        const std::complex<double> pair = GetParam() ? std::complex<double>(x[2 * i], x[2 * i + 1])
                                                     : std::complex<double>(x[i], x[i + half]);
        // The angle is a float product by definition (as the reference implementations have it).
        const double angle = static_cast<float>(position) * rope.inv_freq[i];
        const auto expected = pair * std::polar(1.25, angle);
        ASSERT_NEAR(out[i], expected.real(), 2e-6) << "position " << position << ", pair " << i;
        ASSERT_NEAR(out[i + half], expected.imag(), 2e-6);
      }
      EXPECT_EQ(out[dim], 7);
      EXPECT_EQ(out[dim + 1], 8);
    }
  }
}

// What attention uses of it: a score depends on the distance of two positions only.
TEST_P(RopeKinds, ScoresDependOnDistance) {
  const int dim = 32;
  const Rope rope = make_rope(dim, GetParam());
  const auto score = [&](int32_t q_position, int32_t k_position) {
    auto q = random_vector(dim, 1), k = random_vector(dim, 2);
    std::vector<float> cos(dim / 2), sin(dim / 2);
    rope.angles(q_position, cos.data(), sin.data());
    rope.rotate(cos.data(), sin.data(), q.data());
    rope.angles(k_position, cos.data(), sin.data());
    rope.rotate(cos.data(), sin.data(), k.data());
    double sum = 0;
    for (int i = 0; i < dim; ++i) sum += double{q[i]} * k[i];
    return sum;
  };
  for (const int distance : {0, 1, 5, 40})
    EXPECT_NEAR(score(distance, 0), score(100 + distance, 100), 1e-4);
  EXPECT_GT(std::abs(score(3, 0) - score(0, 3)), 1e-2);  // and on its direction
}

TEST_P(RopeKinds, PositionZeroOnlyReordersAndScales) {
  const Rope rope = make_rope(8, GetParam(), 2.0f);
  std::vector<float> x{1, 2, 3, 4, 5, 6, 7, 8}, cos(4), sin(4);
  rope.angles(0, cos.data(), sin.data());
  rope.rotate(cos.data(), sin.data(), x.data());
  EXPECT_EQ(x, GetParam() ? (std::vector<float>{2, 6, 10, 14, 4, 8, 12, 16})
                          : (std::vector<float>{2, 4, 6, 8, 10, 12, 14, 16}));
}

}  // namespace
}  // namespace kt::cpu
