// The count of workers for generated tokens: what is tried, what is kept.
#include "cpu/pool/thread_tuner.h"

#include <gtest/gtest.h>

#include <atomic>
#include <set>

#include "cpu/pool/pool.h"

namespace kt::cpu {
namespace {

// Steps until it is settled, each taking what `seconds(threads)` says; returns the counts tried.
template <class Seconds>
std::set<int> settle(ThreadTuner& tuner, Seconds seconds) {
  std::set<int> tried;
  for (int step = 0; !tuner.is_settled() && step < 100; ++step) {
    tried.insert(tuner.choose(1));
    tuner.report(1, seconds(tuner.choose(1), step));
  }
  EXPECT_TRUE(tuner.is_settled());
  return tried;
}

TEST(ThreadTuner, FewWorkersAreAllUsedFromTheStart) {
  for (const int threads : {1, 2, 3}) {
    ThreadTuner tuner(threads);
    EXPECT_TRUE(tuner.is_settled());
    EXPECT_EQ(tuner.choose(1), threads);
    EXPECT_EQ(tuner.choose(512), threads);
  }
}

TEST(ThreadTuner, KeepsTheFastestCountForTokensAndAllForPrompts) {
  ThreadTuner tuner(32);
  const auto tried = settle(tuner, [](int threads, int) { return threads == 24 ? 1.0 : 1.2; });
  EXPECT_EQ(tried, (std::set<int>{16, 24, 32}));
  EXPECT_EQ(tuner.choose(1), 24);
  EXPECT_EQ(tuner.choose(4), 24);
  EXPECT_EQ(tuner.choose(5), 32);
}

TEST(ThreadTuner, OneDisturbedStepDecidesNothing) {
  ThreadTuner tuner(8);
  settle(tuner, [](int threads, int step) { return step == 0 ? 50.0 : 1.0 / threads; });
  EXPECT_EQ(tuner.choose(1), 8);
}

TEST(ThreadTuner, AGainWithinNoiseChangesNothing) {
  ThreadTuner tuner(8);
  settle(tuner, [](int threads, int) { return threads == 4 ? 0.99 : 1.0; });
  EXPECT_EQ(tuner.choose(1), 8);
}

TEST(ThreadTuner, PromptsAndBatchesAreNotTrials) {
  ThreadTuner tuner(8);
  for (int i = 0; i < 100; ++i) {
    tuner.report(512, 1.0);
    tuner.report(3, 1.0);
  }
  EXPECT_FALSE(tuner.is_settled());
}

TEST(Pool, RunsOnAsManyWorkersAsAreAskedFor) {
  Pool pool(4);
  for (const int active : {4, 1, 3, 2, 4}) {
    pool.use(active);
    for (int round = 0; round < 50; ++round) {
      std::atomic<int> most{0}, calls{0};
      pool.run(40, [&](int64_t, int worker) {
        for (int seen = most; worker > seen && !most.compare_exchange_weak(seen, worker);) continue;
        ++calls;
      });
      EXPECT_LT(most, active);
      EXPECT_EQ(calls, 40);
    }
  }
}

}  // namespace
}  // namespace kt::cpu
