// GPU -> CPU -> GPU inside a CUDA graph, without a callback per layer.
//
//   GPU stream (graph nodes)                 coordinator thread
//   ------------------------                 ------------------
//   copies x, ids, weights to pinned memory
//   write  go = job                    -->   sees go == job   (acquire: the copies are visible)
//   ... shared and resident experts ...      go = 0; runs job; its result is in pinned memory
//   wait   done == job                 <--   done = job       (release)
//   write  done = 0
//   copies the result, goes on
//
// Why this is safe: values in graph nodes are constants of the capture, so `go` and `done` name the
// job instead of counting. go returns to 0 before done is set, and done to 0 before the next write
// of go in stream order; so neither side can take a value of the last step for one of this step. A
// stream's write of a value is ordered behind the stream's earlier writes to memory (the driver
// puts a barrier before it unless told not to).
//
// One job is under way at a time: `go` and `done` are one pair of words, each on a cache line of
// its own, in memory both sides can reach.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <string>
#include <vector>

#include "base/os.h"

namespace kt::cuda {

/// The two words. Lives in mapped, pinned memory (cudaHostAlloc), or anywhere in tests.
struct Mailbox {
  alignas(64) std::atomic<uint64_t> go{0};
  alignas(64) std::atomic<uint64_t> done{0};
};
static_assert(sizeof(std::atomic<uint64_t>) == 8 && std::atomic<uint64_t>::is_always_lock_free);

/// Work for the CPU inside a step; no allocation, no std::function on the way.
struct HandoffJob {
  void (*run)(void* context, int argument);
  void* context;
  int argument;
  const char* name;  // for messages: "experts of layer 3"
};

struct HandoffOptions {
  int cpu = -1;               // where the coordinator is pinned; -1: nowhere
  double hot_seconds = 0.05;  // it spins so long after a step before it sleeps
  double limit_seconds = 30;  // a job may take; then the step fails
};

/// Polls the mailbox and runs jobs, in a thread of its own.
class Coordinator {
 public:
  /// Job number i (from 0) is what the value i + 1 asks for.
  Coordinator(Mailbox& mailbox, std::vector<HandoffJob> jobs, HandoffOptions options);
  ~Coordinator();
  Coordinator(const Coordinator&) = delete;
  Coordinator& operator=(const Coordinator&) = delete;

  /// Announces a step: the coordinator is awake when its first job is posted. Throws Error after a
  /// step that was given up.
  void begin_step();

  /// Waits until `finished()` (the stream's query) holds. A job's exception is thrown once the
  /// stream is done; a job that is late, or was posted and never taken, is given up: the GPU is
  /// released and Error thrown with its name and time.
  template <class Finished>
  void end_step(Finished finished) {
    for (uint32_t spins = 1; !finished(); ++spins) {
      if (late()) give_up();
      os::spin_pause();
      if (spins % 64 == 0) os::yield();
    }
    rethrow();
  }

  uint64_t jobs_run() const { return jobs_run_.load(std::memory_order_relaxed); }

 private:
  void loop();
  void run_job(uint64_t value);
  bool late();
  [[noreturn]] void give_up();
  void rethrow();

  Mailbox& mailbox_;
  std::vector<HandoffJob> jobs_;
  HandoffOptions options_;
  std::atomic<uint32_t> steps_{0};  // bumped by begin_step and the destructor
  std::atomic<bool> stop_{false};
  std::atomic<bool> broken_{false};
  std::atomic<uint64_t> running_{0};  // value of the job in hand, 0: none
  std::atomic<uint64_t> jobs_run_{0};
  os::Mutex mutex_;  // guards error_
  std::exception_ptr error_;
  // Of the thread in end_step: what it saw last, and since when.
  uint64_t seen_ = 0;
  uint64_t seen_jobs_ = 0;
  double seen_at_ = 0;
  os::Thread thread_;
};

}  // namespace kt::cuda
