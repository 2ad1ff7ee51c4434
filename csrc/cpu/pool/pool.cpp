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
  epoch_.fetch_add(1);
  os::wake_all(epoch_);
  for (os::Thread& worker : workers_) worker.join();
}

void Pool::dispatch(int64_t count, Call call, void* context) {
  KT_CHECK(count < int64_t{1} << 31, "job of ", count, " indices");
  const uint32_t epoch = epoch_.load(std::memory_order_relaxed) + 1;
  count_.store(static_cast<uint32_t>(count), std::memory_order_relaxed);
  call_.store(call, std::memory_order_relaxed);
  job_.store(context, std::memory_order_relaxed);
  failed_.store(false, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  next_.store(uint64_t{epoch} << 32 | static_cast<uint32_t>(count), std::memory_order_release);
  // Sequentially consistent on both sides (here epoch then sleepers, in work() sleepers then
  // epoch), so that either the sleeper sees the new epoch or we see the sleeper.
  epoch_.store(epoch);
  if (sleepers_.load() != 0) os::wake_all(epoch_);
  take(epoch, 0);
  for (int spins = 0; done_.load(std::memory_order_acquire) != count; ++spins) {
    // The worker at the last index may want this very core.
    if (spins < kSpins)
      os::spin_pause();
    else
      os::yield();
  }
  if (failed_.load(std::memory_order_relaxed))
    std::rethrow_exception(std::exchange(error_, nullptr));
}

void Pool::take(uint32_t epoch, int worker) noexcept {
  uint64_t ticket = next_.load(std::memory_order_acquire);
  for (;;) {
    // Of a finished job nothing is left, so a worker that comes late stops here even while the next
    // job is being written; what it reads below counts only if the ticket is still the same then.
    const auto left = static_cast<uint32_t>(ticket);
    if (ticket >> 32 != epoch || left == 0) return;
    const uint32_t index = count_.load(std::memory_order_relaxed) - left;
    const Call call = call_.load(std::memory_order_relaxed);
    void* const job = job_.load(std::memory_order_relaxed);
    if (!next_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel,
                                     std::memory_order_acquire))
      continue;
    try {
      if (!failed_.load(std::memory_order_relaxed)) call(job, index, worker);
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
    done_.fetch_add(1, std::memory_order_acq_rel);
    ticket = next_.load(std::memory_order_acquire);
  }
}

void Pool::work(int worker) {
  os::pin_current_thread(cpus_[worker]);
  uint32_t seen = 0;
  for (;;) {
    uint32_t epoch;
    for (int spins = 0; (epoch = epoch_.load(std::memory_order_acquire)) == seen;) {
      if (++spins < kSpins) {
        os::spin_pause();
        continue;
      }
      sleepers_.fetch_add(1);
      if (epoch_.load() == seen) os::wait_on(epoch_, seen);
      sleepers_.fetch_sub(1);
    }
    seen = epoch;
    if (stop_) return;
    take(epoch, worker);
  }
}

}  // namespace kt::cpu
