#include "cpu/pool/pool.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace kt::cpu {
namespace {

// About 100 microseconds of pauses: longer than any gap inside a decode step, short enough that an
// idle process does not burn its cores.
constexpr int kSpins = 4000;

}  // namespace

int Pool::default_threads() {
  const int cores = static_cast<int>(os::usable_cores().size());
  const int quota = os::cgroup_cpu_quota();
  return quota > 0 ? std::min(cores, quota) : cores;
}

Pool::Pool(int threads) {
  KT_CHECK(threads >= 0, "threads=", threads, " must not be negative");
  if (threads == 0) threads = default_threads();
  std::vector<os::Cpu> cpus = os::usable_cores();
  if (static_cast<int>(cpus.size()) < threads) cpus = os::usable_cpus();
  for (int i = 0; i < threads; ++i) cpus_.push_back(cpus[i % cpus.size()].id);
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

Pool::~Pool() {
  stop_ = true;
  epoch_.fetch_add(1, std::memory_order_release);
  os::wake_all(epoch_);
  for (os::Thread& worker : workers_) worker.join();
}

void Pool::dispatch(int64_t count, Call call, void* context) {
  count_ = count;
  call_ = call;
  context_ = context;
  failed_.store(false, std::memory_order_relaxed);
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  // Sequentially consistent on both sides (here epoch then sleepers, in work() sleepers then
  // epoch), so that either the sleeper sees the new epoch or we see the sleeper.
  epoch_.fetch_add(1);
  if (sleepers_.load() != 0) os::wake_all(epoch_);
  take(0);
  while (busy_.load(std::memory_order_acquire) != 0) os::spin_pause();
  if (failed_.load(std::memory_order_relaxed)) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Pool::take(int worker) noexcept {
  try {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;)
      call_(context_, i, worker);
  } catch (...) {
    next_.store(count_, std::memory_order_relaxed);  // nobody starts another index
    if (!failed_.exchange(true)) error_ = std::current_exception();
  }
}

void Pool::work(int worker) {
  os::pin_current_thread(cpus_[worker]);
  uint32_t seen = 0;
  for (;;) {
    int spins = 0;
    while (epoch_.load(std::memory_order_acquire) == seen) {
      if (++spins < kSpins) {
        os::spin_pause();
        continue;
      }
      sleepers_.fetch_add(1);
      if (epoch_.load() == seen) os::wait_on(epoch_, seen);
      sleepers_.fetch_sub(1);
    }
    ++seen;
    if (stop_) return;
    take(worker);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace kt::cpu
