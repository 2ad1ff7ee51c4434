#include "cpu/pool/pool.h"

#include <algorithm>
#include <map>
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

namespace {

// `count` cores, taken in turn from each node so that all of memory's channels are used, then sorted
// so that neighbours share a node.
std::vector<os::Cpu> spread(std::vector<os::Cpu> cores, size_t count) {
  std::map<int, std::vector<os::Cpu>> by_node;
  for (const os::Cpu& core : cores) by_node[core.node].push_back(core);
  std::vector<os::Cpu> chosen;
  for (size_t turn = 0; chosen.size() < count; ++turn) {
    for (const auto& [node, own] : by_node) {
      if (turn < own.size() && chosen.size() < count) chosen.push_back(own[turn]);
    }
  }
  std::stable_sort(chosen.begin(), chosen.end(),
                   [](const os::Cpu& a, const os::Cpu& b) { return a.node < b.node; });
  return chosen;
}

}  // namespace

Pool::Pool(int threads, std::vector<int> nodes) {
  KT_CHECK(threads >= 0, "threads=", threads, " must not be negative");
  if (threads == 0) threads = default_threads();
  KT_CHECK(nodes.empty() || static_cast<int>(nodes.size()) == threads, "nodes of ", nodes.size(),
           " workers for ", threads, " threads");
  std::vector<os::Cpu> cpus = os::usable_cores();
  if (static_cast<int>(cpus.size()) < threads) cpus = os::usable_cpus();
  if (static_cast<int>(cpus.size()) > threads) cpus = spread(std::move(cpus), threads);
  for (int i = 0; i < threads; ++i) {
    const os::Cpu& cpu = cpus[i % cpus.size()];
    cpus_.push_back(cpu.id);
    node_index_.push_back(nodes.empty() ? cpu.node : nodes[i]);
  }
  nodes_ = node_index_;
  std::sort(nodes_.begin(), nodes_.end());
  nodes_.erase(std::unique(nodes_.begin(), nodes_.end()), nodes_.end());
  KT_CHECK(nodes_.size() <= 64, "workers on ", nodes_.size(), " NUMA nodes, at most 64");
  for (int& node : node_index_)
    node = static_cast<int>(std::lower_bound(nodes_.begin(), nodes_.end(), node) - nodes_.begin());
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
  if (worker >= active_.load(std::memory_order_relaxed) && worker != 0) return;
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
