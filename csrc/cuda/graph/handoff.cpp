#include "cuda/graph/handoff.h"

#include <utility>

#include "base/error.h"

namespace kt::cuda {

Coordinator::Coordinator(Mailbox& mailbox, std::vector<HandoffJob> jobs, HandoffOptions options)
    : mailbox_(mailbox), jobs_(std::move(jobs)), options_(options) {
  thread_ = os::Thread([this] { loop(); });
}

Coordinator::~Coordinator() {
  stop_.store(true, std::memory_order_release);
  steps_.fetch_add(1, std::memory_order_release);
  os::wake_all(steps_);
  thread_.join();
}

void Coordinator::begin_step() {
  if (broken_.load(std::memory_order_acquire))
    throw Error("an earlier step was given up; the model must be loaded again");
  seen_at_ = os::seconds();
  steps_.fetch_add(1, std::memory_order_release);
  os::wake_all(steps_);
}

void Coordinator::loop() {
  if (options_.cpu >= 0) os::pin_current_thread(options_.cpu);
  uint32_t step = 0;
  double last = os::seconds();
  for (uint32_t spins = 0;; ++spins) {
    const uint64_t value = mailbox_.go.load(std::memory_order_acquire);
    if (value != 0) {
      run_job(value);
      spins = 0;
      last = os::seconds();
      continue;
    }
    if (stop_.load(std::memory_order_acquire)) return;
    os::spin_pause();
    if (spins % 256 != 255) continue;  // no system call and no clock in the inner loop
    os::yield();                       // at once back where the core is ours alone
    const uint32_t now = steps_.load(std::memory_order_acquire);
    if (now != step) {
      step = now;
      last = os::seconds();
    } else if (os::seconds() - last > options_.hot_seconds) {
      // Until begin_step or the destructor counts on, or end_step sees a job nobody takes (a phase
      // of the GPU that was longer than the hot time).
      os::wait_on(steps_, step);
      last = os::seconds();
    }
  }
}

void Coordinator::run_job(uint64_t value) {
  running_.store(value, std::memory_order_release);
  mailbox_.go.store(0, std::memory_order_relaxed);  // ordered before `done` by its release
  try {
    if (value > jobs_.size())
      throw Error(concat("the GPU asks for job ", value, " of ", jobs_.size()));
    const HandoffJob& job = jobs_[value - 1];
    job.run(job.context, job.argument);
  } catch (...) {
    const os::Lock lock(mutex_);
    if (!error_) error_ = std::current_exception();
  }
  running_.store(0, std::memory_order_release);
  jobs_run_.fetch_add(1, std::memory_order_relaxed);
  // After an error too: the GPU must not wait for ever. After give_up() it was released already.
  if (!broken_.load(std::memory_order_acquire))
    mailbox_.done.store(value, std::memory_order_release);
}

bool Coordinator::late() {
  const uint64_t posted = mailbox_.go.load(std::memory_order_relaxed);
  const uint64_t now = posted ? posted : running_.load(std::memory_order_relaxed);
  const uint64_t jobs = jobs_run();
  const double time = os::seconds();
  if (now == 0 || now != seen_ || jobs != seen_jobs_) {
    seen_ = now;
    seen_jobs_ = jobs;
    seen_at_ = time;
    return false;
  }
  // Posted while the coordinator slept: its hot time was shorter than the GPU's phase.
  if (posted && time - seen_at_ > 1e-4) {
    steps_.fetch_add(1, std::memory_order_release);
    os::wake_all(steps_);
  }
  return time - seen_at_ > options_.limit_seconds;
}

void Coordinator::give_up() {
  broken_.store(true, std::memory_order_release);
  // Whatever the GPU waits for: it goes on with a wrong result nobody will read.
  mailbox_.go.store(0, std::memory_order_relaxed);
  mailbox_.done.store(seen_, std::memory_order_release);
  const char* name = seen_ <= jobs_.size() ? jobs_[seen_ - 1].name : "an unknown job";
  throw Error(concat(name, ": no result from the CPU for ", options_.limit_seconds,
                     " s; the step was given up"));
}

void Coordinator::rethrow() {
  std::exception_ptr error;
  {
    const os::Lock lock(mutex_);
    error = std::exchange(error_, nullptr);
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace kt::cuda
