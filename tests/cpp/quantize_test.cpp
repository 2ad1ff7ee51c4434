// Every quantizer on values that strain its search: what comes out is finite and not worse than
// nothing. (How good it is, and bounds, are checked from Python; this runs under the sanitizers.)
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "quant/convert.h"
#include "quant/formats.h"
#include "quant/quantize.h"
#include "quant/quantize_blocks.h"

namespace kt::quant {
namespace {

template <class List>
struct ToGtest;
template <class... Fs>
struct ToGtest<TypeList<Fs...>> {
  using Types = ::testing::Types<Fs...>;
};

template <class F>
class Quantizer : public ::testing::Test {};

struct FormatName {
  template <class F>
  static std::string GetName(int) {
    return F::kName;
  }
};
TYPED_TEST_SUITE(Quantizer, ToGtest<Formats>::Types, FormatName);

constexpr size_t kRow = 512;

double energy(const std::vector<float>& x) {
  double sum = 0;
  for (const float v : x) sum += (double)v * v;
  return sum;
}

TYPED_TEST(Quantizer, StrainedValues) {
  using F = TypeParam;
  ASSERT_EQ(can_quantize(F::kGgufId), kCanQuantize<F>);
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const float scale : {0.0f, 1e-45f, 1e-38f, 1e-7f, 1.0f, 10000.0f}) {
    for (const float offset : {0.0f, -3.0f, 3.0f}) {
      std::vector<float> x(3 * kRow), back(x.size()), importance(kRow);
      for (float& v : x) v = std::clamp((normal(random) + offset) * scale, -65504.0f, 65504.0f);
      for (float& v : importance) v = std::exp(4 * normal(random));
      importance[5] = 0;
      std::vector<uint8_t> out(3 * row_bytes(F::kGgufId, kRow));
      if constexpr (!kCanQuantize<F>) {
        EXPECT_THROW(quantize(F::kGgufId, x, kRow, {}, out), Unsupported);
      } else {
        quantize(F::kGgufId, x, kRow, importance, out);
        dequantize(F::kGgufId, out, back);
        for (const float v : back) ASSERT_TRUE(std::isfinite(v));
        quantize(F::kGgufId, x, kRow, {}, out);
        dequantize(F::kGgufId, out, back);
        for (size_t i = 0; i < x.size(); ++i) back[i] -= x[i];
        EXPECT_LE(energy(back), energy(x) * 1.000001) << scale << " " << offset;
      }
    }
  }
}

}  // namespace
}  // namespace kt::quant
