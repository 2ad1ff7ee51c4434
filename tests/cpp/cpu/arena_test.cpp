// Scratch memory: aligned, disjoint while in scope, reused afterwards.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "cpu/ops/context.h"

namespace kt::cpu {
namespace {

TEST(Arena, TakesAlignedMemoryThatDoesNotOverlap) {
  Arena arena;
  std::mt19937 random(3);
  std::vector<std::pair<uint8_t*, size_t>> taken;
  // Some requests are larger than a chunk of 16 MiB, and many fill one up.
  for (int i = 0; i < 300; ++i) {
    const size_t bytes = i % 50 == 7 ? (20u << 20) : 1 + random() % 300000;
    uint8_t* memory = arena.take<uint8_t>(bytes);
    ASSERT_EQ(reinterpret_cast<uintptr_t>(memory) % 64, 0u);
    memory[0] = memory[bytes - 1] = 1;  // it is there
    taken.emplace_back(memory, bytes);
  }
  std::sort(taken.begin(), taken.end());
  for (size_t i = 1; i < taken.size(); ++i)
    ASSERT_LE(taken[i - 1].first + taken[i - 1].second, taken[i].first);
}

TEST(Arena, ScopesGiveBackWhatTheyTook) {
  Arena arena;
  double* outer = arena.take<double>(100);
  outer[0] = 42;
  std::set<void*> first;
  for (int round = 0; round < 5; ++round) {
    Arena::Scope scope(arena);
    std::set<void*> seen;
    for (int i = 0; i < 40; ++i) seen.insert(arena.take<float>(300000));
    {
      Arena::Scope inner(arena);
      seen.insert(arena.take<uint8_t>(40u << 20));
    }
    seen.insert(arena.take<int>(7));
    // The same memory every time: a steady program stops allocating.
    if (round == 1) first = seen;
    if (round > 1) {
      EXPECT_EQ(seen, first);
    }
  }
  EXPECT_EQ(outer[0], 42);
  EXPECT_NE(static_cast<void*>(arena.take<double>(1)), static_cast<void*>(outer));
}

TEST(Arena, NothingTakesNothing) {
  Arena arena;
  arena.take<float>(0);
  float* a = arena.take<float>(1);
  float* b = arena.take<float>(1);
  EXPECT_EQ(b - a, 16);
}

TEST(Pieces, CoverTheItemsWithoutOverlap) {
  for (const int threads : {1, 2, 5}) {
    Context context(threads);
    for (const int64_t items : {1, 2, 7, 16, 1000, 100001}) {
      for (const int64_t smallest : {0, 1, 4, 4096}) {
        const int64_t pieces = pieces_for(context, items, smallest);
        ASSERT_GE(pieces, 1);
        if (threads == 1) {
          ASSERT_EQ(pieces, 1);
        }
        ASSERT_LE(pieces, std::max<int64_t>(1, items));
        int64_t at = 0;
        for (int64_t i = 0; i < pieces; ++i) {
          const Range range = piece(items, pieces, i);
          ASSERT_EQ(range.begin, at);
          ASSERT_GT(range.end, range.begin);
          at = range.end;
        }
        ASSERT_EQ(at, items);
      }
    }
  }
}

}  // namespace
}  // namespace kt::cpu
