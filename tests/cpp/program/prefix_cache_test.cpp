// The prefix cache against a plain list of the texts it was given.
#include "program/prefix_cache.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

namespace kt::program {
namespace {

std::shared_ptr<KvPool> pool(int64_t positions) {
  return std::make_shared<KvPool>(std::vector<cpu::KvSpec>{{8, 8}},
                                  KvOptions{.max_positions = positions});
}

std::vector<int32_t> text(int count, int first = 0) {
  std::vector<int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

std::shared_ptr<Sequence> evaluated(PrefixCache& cache, const std::vector<int32_t>& tokens) {
  auto sequence = cache.match(tokens, static_cast<int64_t>(tokens.size()) - 1);
  sequence->extend(static_cast<int64_t>(tokens.size()));
  cache.insert(*sequence, tokens);
  return sequence;
}

TEST(PrefixCache, GivesWholePagesOfTheLongestCommonBeginning) {
  const auto kv = pool(64 * 32);
  PrefixCache cache(kv);
  const auto tokens = text(200);
  EXPECT_EQ(cache.match(tokens, 199)->length(), 0);
  const auto first = evaluated(cache, tokens);
  EXPECT_EQ(cache.pages(), 3);
  const auto second = cache.match(tokens, 199);
  ASSERT_EQ(second->length(), 192);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(second->pages()[i], first->pages()[i]);
  EXPECT_EQ(cache.match(tokens, 191)->length(), 128) << "the caller wants one token left";
  auto other = tokens;
  other[100] = 7777;
  EXPECT_EQ(cache.match(other, 199)->length(), 64);
  other[0] = 7777;
  EXPECT_EQ(cache.match(other, 199)->length(), 0);
  EXPECT_EQ(cache.match(text(200, 64), 199)->length(), 0) << "a page belongs to what is before it";
}

TEST(PrefixCache, WritingBehindASharedPrefixChangesNobodyElse) {
  const auto kv = pool(64 * 32);
  PrefixCache cache(kv);
  const auto first = evaluated(cache, text(130));
  const auto second = cache.match(text(130), 129);
  second->extend(140);
  EXPECT_NE(second->pages()[2], first->pages()[2]);
  second->truncate(100);  // into a page the cache and the first one hold
  second->extend(101);
  EXPECT_NE(second->pages()[1], first->pages()[1]);
  EXPECT_EQ(cache.match(text(130), 129)->pages()[1], first->pages()[1]);
}

TEST(PrefixCache, KeepsPagesWhenTheSequenceIsGoneAndGivesThemBackAtTheEnd) {
  const auto kv = pool(64 * 32);
  {
    PrefixCache cache(kv);
    evaluated(cache, text(200));
    EXPECT_EQ(kv->pages_in_use(), 3);
    EXPECT_EQ(cache.evictable(), 3);
  }
  EXPECT_EQ(kv->pages_in_use(), 0);
}

TEST(PrefixCache, EvictsTheLongestUnusedAndNothingInUse) {
  const auto kv = pool(64 * 32);
  PrefixCache cache(kv);
  evaluated(cache, text(192, 1000));
  evaluated(cache, text(192, 2000));
  const auto held = evaluated(cache, text(192, 3000));
  cache.match(text(192, 1000), 192);  // used again: 2000 is now the oldest
  EXPECT_EQ(cache.evict(2), 2);
  EXPECT_EQ(cache.match(text(192, 1000), 192)->length(), 192);
  EXPECT_EQ(cache.match(text(192, 2000), 192)->length(), 64) << "ends go before beginnings";
  EXPECT_EQ(cache.evict(100), 4) << "all but the three pages in use";
  EXPECT_EQ(cache.match(text(192, 3000), 192)->length(), 192);
  EXPECT_EQ(held->length(), 192);
}

// Many texts over a small alphabet of pages, against the definition: a page is found if some text
// inserted and not evicted began with the same tokens. Page counts must come out even.
TEST(PrefixCache, RandomTextsAgainstAList) {
  const auto kv = pool(64 * 64);
  PrefixCache cache(kv);
  std::mt19937 random(5);
  std::vector<std::vector<int32_t>> known;
  for (int round = 0; round < 400; ++round) {
    std::vector<int32_t> tokens;
    const int pages = 1 + static_cast<int>(random() % 4);
    for (int p = 0; p < pages; ++p) {
      const auto part = text(64, static_cast<int>(random() % 3) * 100);
      tokens.insert(tokens.end(), part.begin(), part.end());
    }
    tokens.push_back(5);
    int64_t expected = 0;
    for (const auto& old : known) {
      int64_t same = 0;
      while (same < static_cast<int64_t>(std::min(old.size(), tokens.size()) - 1) &&
             old[same] == tokens[same])
        ++same;
      expected = std::max(expected, same / 64 * 64);
    }
    EXPECT_EQ(cache.match(tokens, static_cast<int64_t>(tokens.size()) - 1)->length(), expected);
    evaluated(cache, tokens);
    known.push_back(tokens);
    EXPECT_EQ(kv->pages_in_use(), cache.pages());
    if (round % 100 == 99) {
      cache.evict(1000);
      known.clear();
      EXPECT_EQ(kv->pages_in_use(), 0);
    }
  }
}

}  // namespace
}  // namespace kt::program
