// Work that can be cut in pieces, done by a few threads that live no longer than it does: what
// loads and converts a model. Steps have their own threads (cpu/pool).
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <utility>

#include "base/os.h"

namespace kt::os {

/// Pieces 0 ... count - 1, given to whoever asks next.
class Pieces {
 public:
  explicit Pieces(size_t count) : count_(count) {}
  /// False: there are no more.
  bool take(size_t& piece) { return (piece = next_.fetch_add(1)) < count_; }
  /// Nobody gets another one.
  void stop() { next_.store(count_); }

 private:
  size_t count_;
  std::atomic<size_t> next_{0};
};

/// std::thread, which throws std::system_error where the system has no more threads. For tests.
using StartThread = std::function<Thread(std::function<void()>)>;
inline Thread start_thread(std::function<void()> body) { return Thread(std::move(body)); }

/// work(self), which takes pieces until there are none, on up to `threads` threads at once: this
/// one (self 0) and as many others as the system starts. Returns when all are done. Where work throws
/// the others get no more pieces, and the exception of the lowest self is thrown here.
void share(Pieces& pieces, size_t threads, const std::function<void(size_t self)>& work,
           const StartThread& start = start_thread);

}  // namespace kt::os
