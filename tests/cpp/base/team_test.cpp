// Threads that share a piece of work: everything is done once, whatever the system refuses.
#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <stdexcept>
#include <system_error>
#include <vector>

#include "base/os_team.h"

namespace kt::os {
namespace {

/// How often each piece was done, by `threads` threads of which `refused_from` others start.
std::vector<int> shared(size_t count, size_t threads, int others, std::set<size_t>* selves) {
  Pieces pieces(count);
  std::vector<std::atomic<int>> done(count);
  Mutex mutex;
  int started = 0;
  share(
      pieces, threads,
      [&](size_t self) {
        {
          const Lock lock(mutex);
          selves->insert(self);
        }
        for (size_t piece; pieces.take(piece);) ++done[piece];
      },
      [&](std::function<void()> body) {
        if (started++ == others)
          throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
        return start_thread(std::move(body));
      });
  return {done.begin(), done.end()};
}

TEST(Team, EveryPieceIsDoneOnce) {
  for (const size_t count : {0, 1, 3, 100}) {
    std::set<size_t> selves;
    EXPECT_EQ(shared(count, 4, 100, &selves), std::vector<int>(count, 1));
    EXPECT_EQ(selves, (std::set<size_t>{0, 1, 2, 3}));
  }
}

TEST(Team, GoesOnWithTheThreadsThereAre) {
  for (const int others : {0, 2}) {
    std::set<size_t> selves;
    EXPECT_EQ(shared(50, 8, others, &selves), std::vector<int>(50, 1));
    EXPECT_EQ(selves.size(), size_t(1 + others));
  }
}

TEST(Team, AnExceptionStopsTheOthersAndIsThrownHere) {
  Pieces pieces(1000000000);
  EXPECT_THROW(share(pieces, 3,
                     [&](size_t self) {
                       for (size_t piece; pieces.take(piece);)
                         if (self == 1) throw std::runtime_error("a piece");
                     }),
               std::runtime_error);
  size_t piece;
  EXPECT_FALSE(pieces.take(piece));
}

}  // namespace
}  // namespace kt::os
