// The sampler against a plain reference: which tokens can be chosen, how often, and that a seed
// repeats a run.
#include "program/sampling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"

namespace kt::program {
namespace {

using Logits = std::vector<float>;

Logits random_logits(int vocab, unsigned seed, float spread = 2.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  Logits logits(vocab);
  for (float& value : logits) value = normal(random);
  return logits;
}

// Probability of each token that can be chosen, from the definitions: a token stays while fewer
// than top_k are better, while the better ones together have less than top_p, and while it has at
// least min_p of the best one's probability.
std::map<int, double> reference(const Logits& logits, const SamplingOptions& o) {
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  if (o.top_k > 0 && o.top_k < static_cast<int>(order.size())) order.resize(o.top_k);
  std::map<int, double> p;
  double total = 0;
  for (const int token : order)
    total += p[token] = std::exp((double{logits[token]} - logits[order[0]]) / o.temperature);
  double better = 0;
  std::map<int, double> kept;
  for (const int token : order) {
    if (better >= o.top_p * total) break;
    better += p[token];
    if (p[token] >= o.min_p * p[order[0]]) kept[token] = p[token];
  }
  double sum = 0;
  for (const auto& [token, value] : kept) sum += value;
  for (auto& [token, value] : kept) value /= sum;
  return kept;
}

std::map<int, int> draw(const Logits& logits, const SamplingOptions& options, int count) {
  std::map<int, int> seen;
  Sampler sampler(options);
  for (int i = 0; i < count; ++i) ++seen[sampler.sample(logits)];
  return seen;
}

// Sum of (observed - expected)^2 / expected over the tokens; classes expected less than five times
// are put together, as the test asks for.
double chi_square(const std::map<int, int>& seen, const std::map<int, double>& p, int count,
                  int* classes) {
  double sum = 0, rest_expected = 0, rest_seen = 0;
  *classes = 0;
  for (const auto& [token, probability] : p) {
    const double expected = probability * count;
    const auto found = seen.find(token);
    const double observed = found == seen.end() ? 0 : found->second;
    if (expected < 5) {
      rest_expected += expected, rest_seen += observed;
      continue;
    }
    sum += (observed - expected) * (observed - expected) / expected;
    ++*classes;
  }
  if (rest_expected >= 5) {
    sum += (rest_seen - rest_expected) * (rest_seen - rest_expected) / rest_expected;
    ++*classes;
  }
  return sum;
}

// Five standard deviations above the mean of the chi-square distribution.
double chi_square_limit(int classes) {
  const double degrees = classes - 1;
  return degrees + 5 * std::sqrt(2 * degrees) + 5;
}

SamplingOptions sampled() {
  SamplingOptions options;
  options.greedy = false;
  return options;
}

TEST(Sampler, GreedyTakesTheBestAndOfEqualsTheFirst) {
  for (unsigned seed = 0; seed < 50; ++seed) {
    const Logits logits = random_logits(777, seed);
    const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
    EXPECT_EQ(Sampler({}).sample(logits), best);
  }
  EXPECT_EQ(Sampler({}).sample(Logits{1, 3, 2, 3}), 1);
  SamplingOptions zero = sampled();
  zero.temperature = 0;
  EXPECT_EQ(Sampler(zero).sample(Logits{1, 3, 2, 3}), 1);
}

struct Case {
  const char* name;
  float temperature;
  int top_k;
  float top_p, min_p;
};

class SamplerSets : public ::testing::TestWithParam<Case> {};

INSTANTIATE_TEST_SUITE_P(
    Options, SamplerSets,
    ::testing::Values(Case{"plain", 1, 0, 1, 0}, Case{"cold", 0.5f, 0, 1, 0},
                      Case{"hot", 2, 0, 1, 0}, Case{"top_k_1", 1, 1, 1, 0},
                      Case{"top_k_5", 1, 5, 1, 0}, Case{"top_k_beyond", 1, 1000, 1, 0},
                      Case{"top_p_half", 1, 0, 0.5f, 0}, Case{"top_p_most", 1, 0, 0.95f, 0},
                      Case{"top_p_least", 1, 0, 1e-6f, 0}, Case{"min_p_tenth", 1, 0, 1, 0.1f},
                      Case{"min_p_one", 1, 0, 1, 1}, Case{"all", 0.8f, 12, 0.9f, 0.05f},
                      Case{"all_hot", 1.5f, 20, 0.8f, 0.02f}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_P(SamplerSets, ChoosesExactlyTheTokensAllowedAsOftenAsTheyShould) {
  constexpr int kDraws = 20000;
  SamplingOptions options = sampled();
  options.temperature = GetParam().temperature;
  options.top_k = GetParam().top_k;
  options.top_p = GetParam().top_p;
  options.min_p = GetParam().min_p;
  for (unsigned seed = 0; seed < 3; ++seed) {
    const Logits logits = random_logits(40, seed, 1.5f);
    options.seed = seed;
    const auto expected = reference(logits, options);
    const auto seen = draw(logits, options, kDraws);
    for (const auto& [token, count] : seen)
      EXPECT_TRUE(expected.count(token)) << "token " << token << " must not be chosen";
    for (const auto& [token, p] : expected) {
      if (p * kDraws < 30) continue;
      EXPECT_TRUE(seen.count(token)) << "token " << token << " never came";
    }
    int classes = 0;
    const double statistic = chi_square(seen, expected, kDraws, &classes);
    if (classes > 1) {
      EXPECT_LT(statistic, chi_square_limit(classes)) << "seed " << seed;
    }
  }
}

// The statistic is no rubber stamp: a temperature off by a tenth is seen.
TEST(Sampler, TheDistributionTestCanFail) {
  const Logits logits = random_logits(40, 0, 1.5f);
  SamplingOptions wrong = sampled();
  wrong.temperature = 1.1f;
  int classes = 0;
  const auto expected = reference(logits, sampled());
  const double statistic = chi_square(draw(logits, wrong, 20000), expected, 20000, &classes);
  EXPECT_GT(statistic, chi_square_limit(classes));
}

TEST(Sampler, TopKTakesTheLowerOfEqualTokens) {
  SamplingOptions options = sampled();
  options.top_k = 2;
  const auto seen = draw(Logits{0, 1, 1, 1, 0}, options, 400);
  EXPECT_EQ(seen.size(), 2u);
  EXPECT_TRUE(seen.count(1) && seen.count(2));
}

TEST(Sampler, ASeedRepeatsARunAndAnotherSeedDoesNot) {
  const Logits logits = random_logits(1000, 4);
  const auto run = [&](uint64_t seed) {
    SamplingOptions options = sampled();
    options.seed = seed;
    Sampler sampler(options);
    std::vector<int32_t> tokens;
    for (int i = 0; i < 100; ++i) tokens.push_back(sampler.sample(logits));
    return tokens;
  };
  EXPECT_EQ(run(7), run(7));
  EXPECT_NE(run(7), run(8));
  EXPECT_EQ(run(UINT64_MAX), run(UINT64_MAX));
}

TEST(Sampler, RepetitionPenaltyLowersWhatWasSeenWhateverItsSign) {
  SamplingOptions options;
  options.repetition_penalty = 2.0f;
  Sampler prompt(options);
  const std::vector<int32_t> seen{0, 2, 99, -3};  // ids outside the vocabulary are passed over
  prompt.saw(seen);
  EXPECT_EQ(prompt.sample(Logits{3, 1.6f, 1, -4}), 1);  // 3 / 2 < 1.6
  EXPECT_EQ(prompt.sample(Logits{-1, -3, -1.4f, -9}),
            0);  // -1 * 2 against -3 * 2, now seen as well
  // Seen often or once: the penalty is the same.
  Sampler often(options);
  often.saw(std::vector<int32_t>{0, 0, 0, 0});
  EXPECT_EQ(often.sample(Logits{3, 1.4f}), 0);
}

TEST(Sampler, PresenceAndFrequencyCountGeneratedTokensOnly) {
  SamplingOptions options;
  options.presence_penalty = 1.0f;
  Sampler presence(options);
  presence.saw(std::vector<int32_t>{0});
  const Logits logits{2.5f, 2, 0};
  EXPECT_EQ(presence.sample(logits), 0);  // only in the prompt
  EXPECT_EQ(presence.sample(logits), 1);  // 2.5 - 1 < 2
  EXPECT_EQ(presence.sample(logits), 0);  // 1.5 against 1
  EXPECT_EQ(presence.sample(logits), 0);  // once is all it costs

  options.presence_penalty = 0;
  options.frequency_penalty = 0.4f;
  Sampler frequency(options);
  std::vector<int32_t> tokens;
  for (int i = 0; i < 6; ++i) tokens.push_back(frequency.sample(logits));
  EXPECT_EQ(tokens, (std::vector<int32_t>{0, 0, 1, 0, 1, 0}));  // 2.5 2.1 1.7|2 1.7 1.3|1.6 1.3|1.2
}

TEST(Sampler, PenaltiesShapeTheDistributionToo) {
  SamplingOptions options = sampled();
  options.repetition_penalty = 1.5f;
  options.temperature = 0.7f;
  const Logits logits{1.0f, -0.5f, 0.25f, 2.0f};
  Logits changed{1.0f / 1.5f, -0.5f * 1.5f, 0.25f, 2.0f};
  SamplingOptions plain = options;
  plain.repetition_penalty = 1.0f;
  std::map<int, int> seen;
  for (int i = 0; i < 20000; ++i) {
    options.seed = i;
    Sampler sampler(options);
    sampler.saw(std::vector<int32_t>{0, 1});
    ++seen[sampler.sample(logits)];
  }
  int classes = 0;
  const double statistic = chi_square(seen, reference(changed, plain), 20000, &classes);
  EXPECT_LT(statistic, chi_square_limit(classes));
}

TEST(Sampler, ANanIsNeverChosen) {
  const Logits some{NAN, 1, NAN, 3, NAN, 2};
  EXPECT_EQ(Sampler({}).sample(some), 3);
  for (const float top_p : {1.0f, 0.9f}) {
    SamplingOptions options = sampled();
    options.top_p = top_p;
    Logits many = random_logits(200, 1);
    for (size_t i = 0; i < many.size(); i += 3) many[i] = NAN;
    for (const auto& [token, count] : draw(many, options, 2000)) EXPECT_NE(token % 3, 0);
    EXPECT_GT(draw(many, options, 2000).size(), 10u);
    EXPECT_THROW(Sampler(options).sample(Logits(5, NAN)), InvalidArgument);
  }
  EXPECT_THROW(Sampler({}).sample(Logits(5, NAN)), InvalidArgument);
  EXPECT_THROW(Sampler({}).sample({}), InvalidArgument);
}

TEST(Sampler, InfinitiesHaveTheirPlace) {
  const float inf = INFINITY;
  for (const auto& options : {SamplingOptions{}, sampled()}) {
    EXPECT_EQ(Sampler(options).sample(Logits{0, inf, 5, -inf}), 1);
    EXPECT_EQ(Sampler(options).sample(Logits{-inf, -inf, -5, -inf}), 2);
  }
  const auto seen = draw(Logits{0, inf, 5, inf}, sampled(), 200);
  EXPECT_EQ(seen.size(), 2u);
  EXPECT_TRUE(seen.count(1) && seen.count(3));
}

TEST(Sampler, AVocabularyThatShrinksIsNoAccident) {
  SamplingOptions options;
  options.presence_penalty = 1;
  Sampler sampler(options);
  Logits wide(5000, 0.0f);
  wide[4999] = 1;
  EXPECT_EQ(sampler.sample(wide), 4999);
  EXPECT_EQ(sampler.sample(Logits{0, 1}), 1);
}

TEST(Sampler, RefusesOptionsOutOfRangeByName) {
  const auto refused = [](auto change, const char* name) {
    SamplingOptions options;
    change(options);
    try {
      Sampler sampler(options);
      ADD_FAILURE() << name << " was accepted";
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
    }
  };
  for (const float value : {-1.0f, NAN, INFINITY})
    refused([&](auto& o) { o.temperature = value; }, "temperature");
  refused([](auto& o) { o.top_k = -1; }, "top_k");
  for (const float value : {0.0f, -0.1f, 1.1f, NAN})
    refused([&](auto& o) { o.top_p = value; }, "top_p");
  for (const float value : {-0.1f, 1.1f, NAN}) refused([&](auto& o) { o.min_p = value; }, "min_p");
  for (const float value : {0.0f, -2.0f, NAN, INFINITY})
    refused([&](auto& o) { o.repetition_penalty = value; }, "repetition_penalty");
  for (const float value : {NAN, INFINITY}) {
    refused([&](auto& o) { o.presence_penalty = value; }, "presence_penalty");
    refused([&](auto& o) { o.frequency_penalty = value; }, "frequency_penalty");
  }
}

}  // namespace
}  // namespace kt::program
