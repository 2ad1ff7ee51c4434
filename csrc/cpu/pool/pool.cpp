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

constexpr uint32_t kMostUnits = 0xFFFF;

constexpr uint64_t share_word(uint32_t epoch, uint64_t begin, uint64_t end) {
  return uint64_t{epoch} << 32 | end << 16 | begin;
}

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
  shares_ = std::make_unique<Share[]>(threads);
  ahead_ = std::make_unique<Ahead[]>(threads);
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
  const auto indices = static_cast<uint32_t>(count);
  const uint32_t grain = (indices + kMostUnits - 1) / kMostUnits;
  const uint64_t units = (indices + grain - 1) / grain;
  const int members = active();
  count_.store(indices, std::memory_order_relaxed);
  grain_.store(grain, std::memory_order_relaxed);
  members_.store(members, std::memory_order_relaxed);
  call_.store(call, std::memory_order_relaxed);
  job_.store(context, std::memory_order_relaxed);
  failed_.store(false, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  for (int i = 0; i < members; ++i)
    shares_[i].units.store(share_word(epoch, units * i / members, units * (i + 1) / members),
                           std::memory_order_release);
  // Sequentially consistent on both sides (here epoch then sleepers, in work() sleepers then
  // epoch), so that either the sleeper sees the new epoch or we see the sleeper.
  epoch_.store(epoch);
  if (sleepers_.load() != 0) os::wake_all(epoch_);
  take(epoch, 0);
  for (int spins = 0; done_.load(std::memory_order_acquire) != count; ++spins) {
    if (fetcher_.step(ahead_[0])) continue;
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
  // Of a job that is over there may be more or fewer: then none of the shares is of this epoch.
  const int members = members_.load(std::memory_order_relaxed);
  if (worker >= members) return;
  for (int i = 0; i < members; ++i) {
    const int owner = worker + i < members ? worker + i : worker + i - members;
    while (take_one(epoch, owner, worker)) {
    }
  }
}

// False once nothing of this epoch is left of the owner's share.
bool Pool::take_one(uint32_t epoch, int owner, int worker) noexcept {
  std::atomic<uint64_t>& share = shares_[owner].units;
  uint64_t word = share.load(std::memory_order_acquire);
  for (;;) {
    // Of a finished job nothing is left, so a worker that comes late stops here even while the next
    // job is being written; what it reads below counts only if the word is still the same then.
    const uint64_t begin = word & kMostUnits, end = word >> 16 & kMostUnits;
    if (word >> 32 != epoch || begin == end) return false;
    const bool own = owner == worker;
    const uint64_t unit = own ? begin : end - 1;
    const uint64_t grain = grain_.load(std::memory_order_relaxed);
    const uint64_t count = count_.load(std::memory_order_relaxed);
    const Call call = call_.load(std::memory_order_relaxed);
    void* const job = job_.load(std::memory_order_relaxed);
    const uint64_t rest = own ? share_word(epoch, begin + 1, end) : share_word(epoch, begin, unit);
    if (!share.compare_exchange_weak(word, rest, std::memory_order_acq_rel,
                                     std::memory_order_acquire))
      continue;
    const uint64_t first = unit * grain, last = std::min(first + grain, count);
    for (uint64_t index = first; index < last; ++index) {
      try {
        if (!failed_.load(std::memory_order_relaxed))
          call(job, static_cast<int64_t>(index), worker);
      } catch (...) {
        if (!failed_.exchange(true)) error_ = std::current_exception();
      }
    }
    done_.fetch_add(static_cast<int64_t>(last - first), std::memory_order_acq_rel);
    return true;
  }
}

void Pool::work(int worker) {
  os::pin_current_thread(cpus_[worker]);
  uint32_t seen = 0;
  Fetcher fetcher;
  for (;;) {
    uint32_t epoch;
    for (int spins = 0; (epoch = epoch_.load(std::memory_order_acquire)) == seen;) {
      if (fetcher.step(ahead_[worker])) continue;
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
