// The worker pool: every index once, whatever the threads do; failures reach the caller; a pool
// with more threads than cores, idle or dying, is still a pool. TSan runs this file too
// (tests/tools/sanitize.sh), which is why shared state here is atomic or owned by one index.
#include "cpu/pool/pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"

namespace kt::cpu {
namespace {

// Longer than a worker spins before it sleeps.
void let_workers_sleep() { std::this_thread::sleep_for(std::chrono::milliseconds(20)); }

class PoolOf : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Threads, PoolOf, ::testing::Range(1, 9));

TEST_P(PoolOf, CallsEveryIndexOnceOnAWorkerThatExists) {
  Pool pool(GetParam());
  ASSERT_EQ(pool.threads(), GetParam());
  for (const int64_t count : {0, 1, 2, 3, 7, 64, 1000}) {
    std::vector<std::atomic<int>> calls(count + 1);
    std::atomic<int> bad_workers{0};
    pool.run(count, [&](int64_t index, int worker) {
      ++calls[index];
      if (worker < 0 || worker >= pool.threads()) ++bad_workers;
    });
    for (int64_t i = 0; i < count; ++i) EXPECT_EQ(calls[i], 1) << "index " << i << " of " << count;
    EXPECT_EQ(calls[count], 0);
    EXPECT_EQ(bad_workers, 0);
  }
}

// More indices than the counters have room for: they go in grains.
TEST_P(PoolOf, CallsEveryIndexOfALongJobOnce) {
  Pool pool(GetParam());
  for (const int64_t count : {65535, 65536, 131071, 200000}) {
    std::vector<std::atomic<uint8_t>> calls(count);
    pool.run(count, [&](int64_t index, int) { ++calls[index]; });
    for (int64_t i = 0; i < count; ++i) ASSERT_EQ(calls[i], 1) << "index " << i << " of " << count;
  }
}

// A worker goes through its own part of the job from front to back, and takes from the others' from
// back to front, so that both go on reading where they are.
TEST_P(PoolOf, TakesItsOwnFromTheFrontAndOthersFromTheBack) {
  Pool pool(GetParam());
  const int64_t threads = pool.threads(), count = 40 * threads;
  for (int round = 0; round < 50; ++round) {
    std::vector<std::vector<int64_t>> taken(threads);
    pool.run(count, [&](int64_t index, int worker) { taken[worker].push_back(index); });
    for (int64_t worker = 0; worker < threads; ++worker) {
      for (size_t i = 1; i < taken[worker].size(); ++i) {
        const int64_t before = taken[worker][i - 1], now = taken[worker][i];
        if (before / 40 != now / 40) {
          EXPECT_NE(now / 40, worker) << "came back to its own part";
        } else if (now / 40 == worker) {
          EXPECT_EQ(now, before + 1);
        } else {
          EXPECT_LT(now, before);
        }
      }
    }
  }
}

// No two indices run on one worker at the same time: operators keep scratch memory per worker.
TEST_P(PoolOf, AWorkerDoesOneIndexAtATime) {
  Pool pool(GetParam());
  std::vector<std::atomic<int>> inside(pool.threads());
  std::atomic<int> overlaps{0};
  for (int round = 0; round < 50; ++round) {
    pool.run(40, [&](int64_t, int worker) {
      if (++inside[worker] != 1) ++overlaps;
      --inside[worker];
    });
  }
  EXPECT_EQ(overlaps, 0);
}

// What an index wrote is visible to the caller after run(), and what the caller wrote before run()
// to every index: plain memory on purpose, so that TSan judges the hand-off.
TEST_P(PoolOf, HandsMemoryOverBothWays) {
  Pool pool(GetParam());
  std::vector<int64_t> in(257), out(257);
  for (int64_t round = 0; round < 200; ++round) {
    for (auto& value : in) value = round;
    pool.run(static_cast<int64_t>(in.size()), [&](int64_t i, int) { out[i] = in[i] + i; });
    for (size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], round + static_cast<int64_t>(i));
  }
}

TEST_P(PoolOf, RethrowsAndGoesOn) {
  Pool pool(GetParam());
  for (int round = 0; round < 50; ++round) {
    try {
      pool.run(100, [&](int64_t index, int) {
        if (index == round) throw std::out_of_range("index " + std::to_string(index));
      });
      FAIL() << "nothing was thrown";
    } catch (const std::out_of_range& error) {
      EXPECT_EQ(error.what(), "index " + std::to_string(round));
    }
    std::atomic<int> calls{0};
    pool.run(100, [&](int64_t, int) { ++calls; });
    ASSERT_EQ(calls, 100) << "after round " << round;
  }
}

TEST_P(PoolOf, OneOfManyFailuresIsRethrown) {
  Pool pool(GetParam());
  for (int round = 0; round < 20; ++round)
    EXPECT_THROW(pool.run(64, [](int64_t, int) { throw InvalidArgument("all fail"); }),
                 InvalidArgument);
  std::atomic<int> calls{0};
  pool.run(64, [&](int64_t, int) { ++calls; });
  EXPECT_EQ(calls, 64);
}

// Jobs of different sizes in quick succession: a worker that wakes up late finds a job that is
// over, or the next one being written, and must take an index of neither. Every job has counters of
// its own, so an index taken from the wrong job, twice or not at all shows.
TEST_P(PoolOf, ManyTinyJobs) {
  Pool pool(GetParam());
  constexpr int kJobs = 4000, kLargest = 24;
  struct Job {
    std::atomic<int> calls[kLargest];
  };
  for (int round = 0; round < kJobs; ++round) {
    const int count = round % 2 == 0 ? 2 : 2 + round % (kLargest - 2);
    Job job{};
    pool.run(count, [&job](int64_t index, int) { job.calls[index].fetch_add(1); });
    for (int i = 0; i < kLargest; ++i)
      ASSERT_EQ(job.calls[i], i < count) << round << ", index " << i;
  }
}

TEST_P(PoolOf, WakesUpAfterSleeping) {
  Pool pool(GetParam());
  for (int round = 0; round < 3; ++round) {
    let_workers_sleep();
    std::atomic<int> calls{0};
    pool.run(500, [&](int64_t, int) { ++calls; });
    EXPECT_EQ(calls, 500);
  }
}

TEST_P(PoolOf, EndsAtOnceWhetherAsleepSpinningOrUnused) {
  {
    Pool unused(GetParam());
  }
  {
    Pool spinning(GetParam());
    spinning.run(10, [](int64_t, int) {});
  }
  Pool asleep(GetParam());
  asleep.run(10, [](int64_t, int) {});
  let_workers_sleep();
}

// run() inside a body is a misuse that pool.h documents; the one form of it that is harmless, and
// that operators rely on, is a job of a single index, which runs on the calling thread.
TEST(Pool, AJobOfOneIndexRunsOnTheCaller) {
  Pool pool(4);
  const auto caller = std::this_thread::get_id();
  std::thread::id seen;
  int worker_seen = -1;
  pool.run(1,
           [&](int64_t, int worker) { seen = std::this_thread::get_id(), worker_seen = worker; });
  EXPECT_EQ(seen, caller);
  EXPECT_EQ(worker_seen, 0);
}

TEST(Pool, RefusesANegativeCountOfThreadsAndJobsBeyondItsCounter) {
  EXPECT_THROW(Pool(-1), InvalidArgument);
  Pool pool(2);
  EXPECT_THROW(pool.run(int64_t{1} << 31, [](int64_t, int) {}), InvalidArgument);
  std::atomic<int> calls{0};
  pool.run(-5, [&](int64_t, int) { ++calls; });
  EXPECT_EQ(calls, 0);
}

TEST(Pool, TakesTheUsableCoresByDefault) {
  EXPECT_GE(Pool::default_threads(), 1);
  EXPECT_EQ(Pool(0).threads(), Pool::default_threads());
}

// Two pools in one process do not share jobs.
TEST(Pool, PoolsAreIndependent) {
  Pool first(3), second(2);
  std::atomic<int> a{0}, b{0};
  std::thread other([&] {
    for (int i = 0; i < 300; ++i) second.run(8, [&](int64_t, int) { ++b; });
  });
  for (int i = 0; i < 300; ++i) first.run(8, [&](int64_t, int) { ++a; });
  other.join();
  EXPECT_EQ(a, 2400);
  EXPECT_EQ(b, 2400);
}

// A thousand rounds of the shape of decode steps: short jobs one after another, some of them
// stolen from, some that fail, with pauses in which workers fall asleep. For ThreadSanitizer.
TEST(Pool, AThousandRoundsLoseNothing) {
  Pool pool(4, {0, 0, 1, 1});
  ASSERT_EQ(pool.nodes().size(), 2u);
  std::vector<int64_t> sums(64);
  const std::vector<uint8_t> weights(32 << 10);  // read ahead by whoever waits
  int64_t expected = 0, failures = 0;
  for (int round = 0; round < 1000; ++round) {
    const int64_t count = 1 + round % 64;
    for (int worker = 0; worker < 4; ++worker)
      pool.expect(worker, weights.data() + 16 * round, 64 * (round % 9));
    pool.run(count, [&](int64_t index, int) { sums[index] += round; });
    expected += round * count;
    const int64_t counts[] = {round % 17, round % 5};
    std::vector<int> seen(counts[0] + counts[1]);
    pool.run_by_node(counts, [&](int node, int64_t index, int worker) {
      ++seen[(node == 0 ? 0 : counts[0]) + index];
      if (worker < 0 || worker >= 4) seen[0] += 1000;
    });
    for (const int times : seen) ASSERT_EQ(times, 1) << "round " << round;
    if (round % 50 == 0) let_workers_sleep();
    if (round % 20 == 3) {
      try {
        pool.run(count, [&](int64_t index, int) {
          if (index == count / 2) throw InvalidArgument("on purpose");
        });
      } catch (const InvalidArgument&) {
        ++failures;
      }
    }
  }
  int64_t total = 0;
  for (const int64_t sum : sums) total += sum;
  EXPECT_EQ(total, expected);
  EXPECT_EQ(failures, 50);
}

// With as much work on each node as its workers do in the same time, none is done by others'.
TEST(Pool, WorkersPreferTheirOwnNode) {
  Pool pool(4, {5, 5, 2, 2});
  EXPECT_EQ(std::vector<int>(pool.nodes().begin(), pool.nodes().end()), (std::vector<int>{2, 5}));
  EXPECT_EQ(pool.node_index(0), 1);
  EXPECT_EQ(pool.node_index(3), 0);
  const int64_t counts[] = {400, 400};
  std::atomic<int> first_foreign{0};
  std::atomic<int> left[2] = {400, 400};
  pool.run_by_node(counts, [&](int node, int64_t, int worker) {
    // A worker takes another node's work only when its own has none left to take.
    if (node != pool.node_index(worker) && left[pool.node_index(worker)] > 4) ++first_foreign;
    --left[node];
  });
  EXPECT_EQ(first_foreign, 0);
  EXPECT_EQ(left[0] + left[1], 0);
}

TEST(Pool, RefusesATopologyOfAnotherSize) {
  EXPECT_THROW(Pool(3, {0, 1}), InvalidArgument);
}

}  // namespace
}  // namespace kt::cpu
