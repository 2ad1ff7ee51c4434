// The paged cache: what a sequence holds is what was written to it, whoever shares its pages, and
// every page is accounted for. The property test runs random operations against plain vectors.
#include "program/kv_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"

namespace kt::program {
namespace {

using cpu::KvType;

// Two layers; the second has no values (MLA).
std::shared_ptr<KvPool> make_pool(int64_t positions) {
  return std::make_shared<KvPool>(std::vector<cpu::KvSpec>{{6, 5}, {3, 0}},
                                  KvOptions{KvType::kF32, KvType::kF32, positions});
}

// A number written at every place of a position: keys of both layers and the values.
void write(Sequence& sequence, int64_t position, float tag) {
  KvPool& pool = sequence.pool();
  const int32_t page = sequence.pages()[position / 64];
  const int64_t slot = position % 64;
  for (int layer = 0; layer < 2; ++layer) {
    const auto& spec = pool.spec(layer);
    auto* keys = reinterpret_cast<float*>(pool.keys(layer, page)) + slot * spec.k_width;
    for (int64_t i = 0; i < spec.k_width; ++i) keys[i] = tag + i;
    if (spec.v_width == 0) continue;
    auto* values = reinterpret_cast<float*>(pool.values(layer, page)) + slot * spec.v_width;
    for (int64_t i = 0; i < spec.v_width; ++i) values[i] = -tag - i;
  }
}

// The tag at a position, or -1 where its places do not agree.
float read(const Sequence& sequence, int64_t position) {
  const KvPool& pool = sequence.pool();
  const int32_t page = sequence.pages()[position / 64];
  const int64_t slot = position % 64;
  const auto* keys = reinterpret_cast<const float*>(pool.keys(0, page)) + slot * 6;
  const auto* values = reinterpret_cast<const float*>(pool.values(0, page)) + slot * 5;
  const auto* latent = reinterpret_cast<const float*>(pool.keys(1, page)) + slot * 3;
  const float tag = keys[0];
  for (int i = 0; i < 6; ++i)
    if (keys[i] != tag + i) return -1;
  for (int i = 0; i < 5; ++i)
    if (values[i] != -tag - i) return -1;
  for (int i = 0; i < 3; ++i)
    if (latent[i] != tag + i) return -1;
  return tag;
}

void append(Sequence& sequence, int count, float first_tag) {
  const int64_t begin = sequence.length();
  sequence.extend(begin + count);
  for (int i = 0; i < count; ++i) write(sequence, begin + i, first_tag + 10.0f * i);
}

TEST(KvPool, GrowsPageByPage) {
  auto pool = make_pool(1000);
  EXPECT_EQ(pool->page_limit(), 16);
  EXPECT_EQ(pool->bytes_per_position(), (6 + 5 + 3) * 4);
  auto sequence = pool->make_sequence();
  EXPECT_EQ(sequence->length(), 0);
  EXPECT_EQ(pool->pages_in_use(), 0);
  for (const auto& [end, pages] :
       {std::pair{1, 1}, {63, 1}, {64, 1}, {65, 2}, {128, 2}, {200, 4}}) {
    sequence->extend(end);
    EXPECT_EQ(sequence->length(), end);
    EXPECT_EQ(pool->pages_in_use(), pages) << end;
  }
  sequence->extend(100);  // never shortens
  EXPECT_EQ(sequence->length(), 200);
}

TEST(KvPool, ForksShareUntilOneWrites) {
  auto pool = make_pool(1000);
  auto first = pool->make_sequence();
  append(*first, 100, 1000);
  auto second = first->fork();
  EXPECT_EQ(pool->pages_in_use(), 2);
  EXPECT_EQ(second->pages()[0], first->pages()[0]);

  append(*second, 1, 7000);  // copies the half full page, and nothing else
  EXPECT_EQ(pool->pages_in_use(), 3);
  EXPECT_EQ(second->pages()[0], first->pages()[0]);
  EXPECT_NE(second->pages()[1], first->pages()[1]);
  append(*first, 1, 9000);  // its page is its own again: no copy
  EXPECT_EQ(pool->pages_in_use(), 3);
  for (int64_t p = 0; p < 100; ++p) {
    ASSERT_EQ(read(*first, p), 1000 + 10 * p);
    ASSERT_EQ(read(*second, p), 1000 + 10 * p);
  }
  EXPECT_EQ(read(*first, 100), 9000);
  EXPECT_EQ(read(*second, 100), 7000);
}

TEST(KvPool, FullPagesAreSharedWithoutACopy) {
  auto pool = make_pool(1000);
  auto first = pool->make_sequence();
  append(*first, 128, 0);
  auto second = first->fork();
  append(*second, 5, 5000);
  EXPECT_EQ(pool->pages_in_use(), 3);
}

TEST(KvPool, TruncatedIntoASharedPageItIsCopiedBeforeWriting) {
  auto pool = make_pool(1000);
  auto first = pool->make_sequence();
  append(*first, 128, 0);
  auto second = first->fork();
  second->truncate(70);
  EXPECT_EQ(pool->pages_in_use(), 2);
  append(*second, 3, 5000);
  EXPECT_EQ(pool->pages_in_use(), 3);
  for (int64_t p = 0; p < 128; ++p) ASSERT_EQ(read(*first, p), 10 * p);
  EXPECT_EQ(read(*second, 69), 690);
  EXPECT_EQ(read(*second, 70), 5000);
}

TEST(KvPool, PagesComeBack) {
  auto pool = make_pool(64 * 40);
  {
    auto a = pool->make_sequence();
    append(*a, 1000, 0);
    auto b = a->fork();
    append(*b, 500, 0);
    a->truncate(64);
    EXPECT_EQ(a->length(), 64);
    EXPECT_EQ(pool->pages_in_use(), 24);  // b's 1500 positions; a's page is among them
    a.reset();
    EXPECT_EQ(pool->pages_in_use(), 24);
    b->truncate(0);
    EXPECT_EQ(pool->pages_in_use(), 0);
    b->truncate(5);  // longer than it is: nothing happens
    EXPECT_EQ(b->length(), 0);
    b->extend(10);
  }
  EXPECT_EQ(pool->pages_in_use(), 0);
}

TEST(KvPool, WhenFullNothingChanges) {
  auto pool = make_pool(256);
  auto a = pool->make_sequence(), b = pool->make_sequence();
  append(*a, 150, 0);
  append(*b, 10, 3000);
  const std::vector<int32_t> pages(b->pages().begin(), b->pages().end());
  try {
    b->extend(65);
    FAIL() << "the fifth page of four was given";
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("cache is full"), std::string::npos);
  }
  EXPECT_EQ(b->length(), 10);
  EXPECT_EQ(std::vector<int32_t>(b->pages().begin(), b->pages().end()), pages);
  EXPECT_EQ(pool->pages_in_use(), 4);
  for (int64_t p = 0; p < 10; ++p) ASSERT_EQ(read(*b, p), 3000 + 10 * p);
  append(*b, 54, 4000);  // what fits still goes
  // A copy on write needs a page as well.
  auto c = a->fork();
  EXPECT_THROW(c->extend(151), InvalidArgument);
  EXPECT_EQ(c->length(), 150);
  EXPECT_EQ(c->pages()[2], a->pages()[2]);
  b->truncate(0);
  append(*c, 1, 8000);
  EXPECT_EQ(read(*c, 150), 8000);
}

TEST(KvPool, RefusesLengthsThatAreNone) {
  auto pool = make_pool(256);
  auto sequence = pool->make_sequence();
  append(*sequence, 70, 0);
  EXPECT_THROW(sequence->truncate(-1), InvalidArgument);
  EXPECT_THROW(sequence->truncate(INT64_MIN), InvalidArgument);
  EXPECT_THROW(sequence->extend(INT64_MAX), InvalidArgument);
  EXPECT_THROW(sequence->extend(257), InvalidArgument);
  sequence->extend(-5);
  EXPECT_EQ(sequence->length(), 70);
  EXPECT_EQ(pool->pages_in_use(), 2);
}

TEST(KvPool, RefusesTypesThatDoNotFit) {
  const auto make = [](KvType k, KvType v, int64_t positions) {
    return KvPool({{48, 32}}, KvOptions{k, v, positions});
  };
  EXPECT_THROW(make(KvType::kQ8_0, KvType::kQ8_0, 64), InvalidArgument);
  EXPECT_NO_THROW(make(KvType::kF16, KvType::kQ8_0, 64));
  EXPECT_THROW(make(KvType::kF16, KvType::kF16, 0), InvalidArgument);
  EXPECT_THROW(make(KvType::kF16, KvType::kF16, -64), InvalidArgument);
  EXPECT_THROW(make(KvType::kF16, KvType::kF16, INT64_MAX), InvalidArgument);
}

// Python lets go of sequences wherever its collector runs, also while another thread evaluates.
TEST(KvPool, ThreadsMayHoldSequencesOfTheirOwn) {
  auto pool = make_pool(64 * 200);
  auto shared = pool->make_sequence();
  append(*shared, 100, 500);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t, own = shared->fork()]() mutable {
      for (int round = 0; round < 60; ++round) {
        auto next = own->fork();
        append(*next, 90 + t, static_cast<float>(1000 * t));
        for (int i = 0; i < 90 + t; ++i) wrong += read(*next, 100 + i) != 1000 * t + 10 * i;
        for (int i = 0; i < 100; ++i) wrong += read(*next, i) != 500 + 10 * i;
        next->truncate(round);
      }
      own.reset();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(pool->pages_in_use(), 2);
}

// A sequence outlives the last handle on its pool.
TEST(KvPool, LivesAsLongAsItsSequences) {
  auto sequence = make_pool(64)->make_sequence();
  append(*sequence, 64, 5);
  EXPECT_EQ(read(*sequence, 63), 635);
}

TEST(KvPool, RandomOperationsAgreeWithPlainVectors) {
  for (const int seed : {1, 2, 3, 4}) {
    std::mt19937 random(seed);
    auto pool = make_pool(64 * 30);
    struct Pair {
      std::shared_ptr<Sequence> sequence;
      std::vector<float> model;
    };
    std::vector<Pair> all;
    float tag = 0;
    int refused = 0;
    for (int step = 0; step < 3000; ++step) {
      const int choice = all.empty() ? 0 : static_cast<int>(random() % 10);
      const size_t at = all.empty() ? 0 : random() % all.size();
      if (choice == 0 && all.size() < 12) {
        all.push_back({pool->make_sequence(), {}});
      } else if (choice == 1 && all.size() < 12) {
        all.push_back({all[at].sequence->fork(), all[at].model});
      } else if (choice == 2) {
        all.erase(all.begin() + at);
      } else if (choice <= 4) {
        const auto length = static_cast<int64_t>(random() % (all[at].model.size() + 2));
        all[at].sequence->truncate(length);
        if (length < static_cast<int64_t>(all[at].model.size())) all[at].model.resize(length);
      } else {
        const int count = 1 + static_cast<int>(random() % 130);
        try {
          append(*all[at].sequence, count, tag);
          for (int i = 0; i < count; ++i) all[at].model.push_back(tag + 10.0f * i);
          tag = tag > 1e6f ? 0 : tag + 13;
        } catch (const InvalidArgument&) {
          ++refused;
        }
      }
      // Every page in use belongs to somebody, none to nobody, and what is read is what was
      // written.
      std::vector<int> owners(static_cast<size_t>(pool->page_limit()) + 32, 0);
      for (const Pair& pair : all) {
        ASSERT_EQ(pair.sequence->length(), static_cast<int64_t>(pair.model.size()));
        ASSERT_EQ(pair.sequence->pages().size(), (pair.model.size() + 63) / 64);
        for (const int32_t page : pair.sequence->pages()) ++owners[page];
      }
      ASSERT_EQ(owners.size() - std::count(owners.begin(), owners.end(), 0), pool->pages_in_use());
      ASSERT_LE(pool->pages_in_use(), pool->page_limit());
      if (step % 20 != 0) continue;
      for (const Pair& pair : all)
        for (size_t p = 0; p < pair.model.size(); ++p)
          ASSERT_EQ(read(*pair.sequence, p), pair.model[p]) << "seed " << seed << ", step " << step;
    }
    EXPECT_GT(refused, 0);  // the limit was met
    all.clear();
    EXPECT_EQ(pool->pages_in_use(), 0);
  }
}

}  // namespace
}  // namespace kt::program
