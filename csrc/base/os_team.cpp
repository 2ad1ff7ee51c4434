#include "base/os_team.h"

#include <exception>
#include <vector>

namespace kt::os {

void share(Pieces& pieces, size_t threads, const std::function<void(size_t self)>& work,
           const StartThread& start) {
  std::vector<std::exception_ptr> failures(threads > 0 ? threads : 1);
  const auto guarded = [&](size_t self) noexcept {
    try {
      work(self);
    } catch (...) {
      failures[self] = std::current_exception();
      pieces.stop();
    }
  };
  std::vector<Thread> others;
  others.reserve(failures.size());
  try {
    for (size_t self = 1; self < failures.size(); ++self)
      others.push_back(start([&guarded, self] { guarded(self); }));
  } catch (const std::exception&) {
    // No more threads, or no memory for one: those that there are do it all.
  }
  guarded(0);
  for (Thread& thread : others) thread.join();
  for (const std::exception_ptr& failure : failures)
    if (failure) std::rethrow_exception(failure);
}

}  // namespace kt::os
