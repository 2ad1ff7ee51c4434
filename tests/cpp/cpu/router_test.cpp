// The router against the definitions in plain double arithmetic, for every way families route.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "cpu/ops/ffn.h"
#include "quant/f32.h"

namespace kt::cpu {
namespace {

constexpr int kHidden = 24;

struct Choice {
  std::vector<int> ids;
  std::vector<double> weights;
  double margin;  // of the closest decision: below float noise nothing can be compared
};

// DeepSeek-V3 (arXiv 2412.19437, eq. 13-16) and DeepSeek-V2's grouping; softmax routers are the
// case of one group without bias.
Choice reference(const std::vector<double>& logits, const RouterOptions& o) {
  const int experts = static_cast<int>(logits.size()), size = experts / o.n_group;
  std::vector<double> score(experts), choice(experts);
  double sum = 0;
  for (const double logit : logits) sum += std::exp(logit);
  for (int e = 0; e < experts; ++e) {
    score[e] = o.sigmoid ? 1 / (1 + std::exp(-logits[e])) : std::exp(logits[e]) / sum;
    choice[e] = score[e] + (o.bias.empty() ? 0.0 : o.bias[e]);
  }
  Choice result{{}, {}, INFINITY};
  const auto best = [&](std::vector<double> values, int count) {  // ids, lower id first where equal
    std::vector<int> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return values[a] > values[b]; });
    for (int i = 0; i < count && i + 1 < static_cast<int>(order.size()); ++i) {
      const double gap = values[order[i]] - values[order[i + 1]];
      if (std::isfinite(gap) && gap > 0) result.margin = std::min(result.margin, gap);
    }
    order.resize(count);
    return order;
  };
  if (o.n_group > 1) {
    std::vector<double> groups;
    for (int g = 0; g < o.n_group; ++g) {
      std::vector<double> members(choice.begin() + g * size, choice.begin() + (g + 1) * size);
      std::sort(members.rbegin(), members.rend());
      groups.push_back(o.group_sum_of_two ? members[0] + members[1] : members[0]);
    }
    const std::vector<int> kept = best(groups, o.topk_group);
    for (int g = 0; g < o.n_group; ++g)
      if (std::find(kept.begin(), kept.end(), g) == kept.end())
        std::fill_n(choice.begin() + g * size, size, -INFINITY);
  }
  result.ids = best(choice, o.num_experts_per_tok);
  double total = 0;
  for (const int e : result.ids) total += score[e];
  for (const int e : result.ids)
    result.weights.push_back(score[e] / (o.norm_topk_prob ? total : 1.0) * o.routed_scaling_factor);
  return result;
}

std::shared_ptr<const Linear> make_weight(Context& context, const std::vector<float>& w) {
  const std::span bytes(reinterpret_cast<const uint8_t*>(w.data()), w.size() * 4);
  return std::make_shared<Linear>(
      Matrix::repack(context, bytes, quant::F32::kGgufId, w.size() / kHidden, kHidden, "gate"),
      std::vector<float>{});
}

struct Named {
  const char* name;
  int experts;
  RouterOptions options;
};

RouterOptions options(int k, bool sigmoid = false, bool norm = false, float scale = 1) {
  RouterOptions o;
  o.num_experts_per_tok = k;
  o.sigmoid = sigmoid;
  o.norm_topk_prob = norm;
  o.routed_scaling_factor = scale;
  return o;
}

RouterOptions grouped(RouterOptions o, int n_group, int topk_group, bool sum_of_two) {
  o.n_group = n_group;
  o.topk_group = topk_group;
  o.group_sum_of_two = sum_of_two;
  return o;
}

RouterOptions biased(RouterOptions o, int experts, float size) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, size);
  for (int e = 0; e < experts; ++e) o.bias.push_back(normal(random));
  return o;
}

class RouterKinds : public ::testing::TestWithParam<Named> {};

INSTANTIATE_TEST_SUITE_P(
    Families, RouterKinds,
    ::testing::Values(
        Named{"mixtral", 8, options(2, false, true)}, Named{"qwen2moe", 60, options(4)},
        Named{"qwen3moe", 128, options(8, false, true)}, Named{"v2_lite", 64, options(6)},
        Named{"v2_grouped", 160, grouped(options(6, false, false, 16), 8, 3, false)},
        Named{"v3", 256, biased(grouped(options(8, true, true, 2.5f), 8, 4, true), 256, 0.1f)},
        Named{"v3_strong_bias", 32,
              biased(grouped(options(4, true, true, 2.5f), 4, 2, true), 32, 3.0f)},
        Named{"every_expert", 6, options(6, true, true)}, Named{"one", 1, options(1)}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_P(RouterKinds, AgreesWithPlainArithmetic) {
  const auto& [name, experts, o] = GetParam();
  Context context(2);
  std::mt19937 random(experts);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> w(experts * kHidden);
  for (float& value : w) value = normal(random) * 0.5f;
  const Router router(make_weight(context, w), o);
  for (const int m : {1, 2, 7, 33}) {
    std::vector<float> x(m * kHidden);
    for (float& value : x) value = normal(random);
    std::vector<int32_t> ids(m * o.num_experts_per_tok, -1);
    std::vector<float> weights(ids.size(), NAN);
    router.forward(context, x.data(), m, ids.data(), weights.data());
    int compared = 0;
    for (int t = 0; t < m; ++t) {
      std::vector<double> logits(experts);
      for (int e = 0; e < experts; ++e)
        for (int i = 0; i < kHidden; ++i)
          logits[e] += double{w[e * kHidden + i]} * x[t * kHidden + i];
      const Choice expected = reference(logits, o);
      if (expected.margin < 1e-5) continue;
      ++compared;
      for (int i = 0; i < o.num_experts_per_tok; ++i) {
        const int at = t * o.num_experts_per_tok + i;
        ASSERT_EQ(ids[at], expected.ids[i]) << "token " << t << ", place " << i;
        ASSERT_NEAR(weights[at], expected.weights[i], 3e-6 * (1 + expected.weights[i]));
      }
    }
    EXPECT_GE(compared * 2, m);
  }
}

// Equal logits everywhere: the lowest ids of the lowest groups, whatever the way of routing.
TEST_P(RouterKinds, TiesGoToTheLowerId) {
  auto [name, experts, o] = GetParam();
  o.bias.assign(o.bias.size(), 0.25f);
  Context context(1);
  const Router router(make_weight(context, std::vector<float>(experts * kHidden, 0.0f)), o);
  std::vector<float> x(kHidden, 1.0f);
  std::vector<int32_t> ids(o.num_experts_per_tok);
  std::vector<float> weights(ids.size());
  router.forward(context, x.data(), 1, ids.data(), weights.data());
  for (size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(ids[i], static_cast<int>(i));
}

TEST(Router, TheBiasChoosesAndDoesNotWeigh) {
  RouterOptions o = options(1, true);
  o.bias = {0, 0, 10};
  Context context(1);
  std::vector<float> w(3 * kHidden, 0.0f);
  w[0] = 1, w[2 * kHidden] = -1;
  const Router router(make_weight(context, w), o);
  std::vector<float> x(kHidden, 0.0f);
  x[0] = 2;
  int32_t id;
  float weight;
  router.forward(context, x.data(), 1, &id, &weight);
  EXPECT_EQ(id, 2);
  EXPECT_NEAR(weight, 1 / (1 + std::exp(2.0)), 1e-6);
}

TEST(Router, ExtremeLogitsStayFinite) {
  Context context(1);
  std::vector<float> w(4 * kHidden, 0.0f);
  for (int e = 0; e < 4; ++e) w[e * kHidden] = static_cast<float>(e - 2) * 1000;
  for (const bool sigmoid : {false, true}) {
    const Router router(make_weight(context, w), options(3, sigmoid, true));
    std::vector<float> x(kHidden, 0.0f);
    x[0] = 1;
    int32_t ids[3];
    float weights[3];
    router.forward(context, x.data(), 1, ids, weights);
    EXPECT_EQ(ids[0], 3);
    for (const float weight : weights) EXPECT_TRUE(std::isfinite(weight));
  }
}

// Damaged input must not lead out of the table.
TEST(Router, NanLogitsStillGiveIdsThatExist) {
  Context context(1);
  for (const Named& named :
       {Named{"", 8, options(3)}, Named{"", 8, grouped(options(3, true, true), 4, 2, true)}}) {
    std::vector<float> w(named.experts * kHidden, 1.0f);
    const Router router(make_weight(context, w), named.options);
    std::vector<float> x(kHidden, NAN);
    std::vector<int32_t> ids(3, -1);
    std::vector<float> weights(3);
    router.forward(context, x.data(), 1, ids.data(), weights.data());
    for (const int32_t id : ids) EXPECT_TRUE(id >= 0 && id < named.experts) << id;
  }
}

TEST(Router, RefusesOptionsThatDoNotFit) {
  Context context(1);
  const auto weight = make_weight(context, std::vector<float>(12 * kHidden, 0.0f));
  const auto refused = [&](const RouterOptions& o, const char* value) {
    try {
      Router router(weight, o);
      ADD_FAILURE() << value << " was accepted";
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find(value), std::string::npos) << error.what();
    }
  };
  refused(options(0), "num_experts_per_tok=0");
  refused(options(13), "num_experts_per_tok=13");
  refused(biased(options(2), 11, 1), "11 values");
  refused(grouped(options(2), 5, 1, false), "n_group=5");
  refused(grouped(options(2), 0, 1, false), "n_group=0");
  refused(grouped(options(2), 4, 0, false), "topk_group=0");
  refused(grouped(options(2), 4, 5, false), "topk_group=5");
  refused(grouped(options(4), 4, 1, false), "num_experts_per_tok=4");
  refused(grouped(options(2), 12, 2, true), "groups of one");
}

}  // namespace
}  // namespace kt::cpu
