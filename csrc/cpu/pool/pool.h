// CPUInfer: the worker threads of the CPU core.
//
// One worker per physical core the process may use, pinned; the calling thread is worker 0. A job
// is a plain function over [0, count), started by raising an epoch: workers spin on it for a short
// while and then sleep, so a decode step (hundreds of jobs in a row) makes no system call, takes no
// lock and allocates nothing. What a worker throws is thrown again by run().
//
// Each worker has a run of consecutive indices of its own, which it takes from the front: operators
// put neighbours in memory side by side, and reading on is faster than beginning anew (a jump costs
// as much as 40 KB of reading on Zen 4). Whoever is done takes from the back of what others have.
//
// run() waits for the indices, not for the workers: one that the system has taken off its core
// holds up the index it is at, and none else; it finds the job gone when it comes back. To make
// that safe an index is taken by compare-and-swap on (epoch, first, last) in one word: a late
// worker can take none of a job it has not seen, nor one more of a job that is over, whatever is
// being written for the next.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include "base/os.h"
#include "cpu/pool/fetcher.h"

namespace kt::cpu {

class Pool {
 public:
  /// `threads` workers, the caller included; 0 takes every usable physical core, within the cgroup
  /// quota. Throws InvalidArgument for a negative count.
  /// nodes: empty, or the NUMA node of each worker in place of what the system says; a count other
  /// than `threads` throws too.
  explicit Pool(int threads, std::vector<int> nodes = {});
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// From the next run() on, only workers 0..count-1 take part; at least one, at most all do.
  void use(int count) { active_.store(count, std::memory_order_relaxed); }

  /// How many take part.
  int active() const { return std::clamp(active_.load(std::memory_order_relaxed), 1, threads()); }

  /// What a worker will read in a job to come, in place of what was said before: while it has nothing
  /// else to do it brings that into its core's L2. For the thread that calls run().
  void expect(int worker, const uint8_t* data, int64_t bytes) { ahead_[worker].set(data, bytes); }

  /// The NUMA nodes that workers are on, ascending.
  std::span<const int> nodes() const { return nodes_; }
  /// Which of nodes() a worker is on.
  int node_index(int worker) const { return node_index_[worker]; }

  /// Calls body(index, worker) for every index in [0, count), on all workers; returns when all are
  /// done. Not reentrant: one caller at a time, and no run() inside a body.
  template <class Body>
  void run(int64_t count, Body&& body) {
    if (count <= 0) return;
    if (workers_.empty() || count == 1) {
      for (int64_t i = 0; i < count; ++i) body(i, 0);
      return;
    }
    using Plain = std::remove_reference_t<Body>;
    dispatch(
        count,
        [](void* context, int64_t index, int worker) {
          (*static_cast<Plain*>(context))(index, worker);
        },
        const_cast<std::remove_const_t<Plain>*>(&body));
  }

  /// Calls body(node, index, worker) for every index in [0, counts[node]) of every node: by workers
  /// of that node (an index into nodes()) as long as they keep up, then by whoever is free.
  template <class Body>
  void run_by_node(std::span<const int64_t> counts, Body&& body) {
    constexpr size_t kMost = 64;  // the constructor sees to it that there are no more
    struct alignas(64) Queue {
      std::atomic<int64_t> next{0};
    };
    Queue queues[kMost];
    const size_t used = counts.size();
    int64_t total = 0;
    for (size_t i = 0; i < used; ++i) total += counts[i];
    // As many calls as there are indices, and each takes one: as long as fewer than all are taken,
    // one of the queues has some left.
    run(total, [&](int64_t, int worker) {
      for (size_t i = 0; i < used; ++i) {
        const size_t node = (static_cast<size_t>(node_index(worker)) + i) % used;
        const int64_t index = queues[node].next.fetch_add(1, std::memory_order_relaxed);
        if (index < counts[node]) return body(static_cast<int>(node), index, worker);
      }
    });
  }

  /// The count run by default: usable physical cores, within the cgroup's quota.
  static int default_threads();

 private:
  using Call = void (*)(void* context, int64_t index, int worker);
  void dispatch(int64_t count, Call call, void* context);
  void work(int worker);
  void take(uint32_t epoch, int worker) noexcept;
  bool take_one(uint32_t epoch, int owner, int worker) noexcept;

  // Each on its own cache line: workers poll one while others write the next.
  alignas(64) std::atomic<uint32_t> epoch_{0};  // of the newest job; workers sleep on it
  alignas(64) std::atomic<uint32_t> sleepers_{0};
  alignas(64) std::atomic<int64_t> done_{0};  // indices finished
  alignas(64) std::atomic<bool> failed_{false};
  std::exception_ptr error_;
  std::atomic<bool> stop_{false};
  // What is left of each worker's units: epoch << 32 | end << 16 | begin. A unit is one index, or
  // `grain` consecutive ones of a job with more than 65535.
  struct alignas(64) Share {
    std::atomic<uint64_t> units{0};
  };
  std::unique_ptr<Share[]> shares_;
  std::unique_ptr<Ahead[]> ahead_;  // of each worker
  Fetcher fetcher_;  // of worker 0
  // The job. Atomic because a late worker may look while the next one is written; what it reads
  // then is not used, as its compare-and-swap fails.
  std::atomic<uint32_t> count_{0}, grain_{1};
  std::atomic<int> members_{0};  // workers with a share
  std::atomic<int> active_{1 << 30};  // workers that take part
  std::atomic<Call> call_{nullptr};
  std::atomic<void*> job_{nullptr};
  std::vector<int> cpus_;  // of each worker
  std::vector<int> nodes_;
  std::vector<int> node_index_;  // of each worker, in nodes_
  std::vector<os::Thread> workers_;
};

}  // namespace kt::cpu
