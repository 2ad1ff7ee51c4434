#include "cpu/pool/thread_tuner.h"

#include <algorithm>

namespace kt::cpu {

ThreadTuner::ThreadTuner(int threads) {
  candidates_.push_back({threads});
  if (threads < 4) {
    trial_ = kTrials;
    return;
  }
  candidates_.push_back({threads * 3 / 4});
  candidates_.push_back({threads / 2});
}

int ThreadTuner::choose(int rows) const {
  if (rows > kDecodeRows) return prompt_threads();
  return is_settled() ? decode_threads() : candidates_[trial_ % candidates_.size()].threads;
}

void ThreadTuner::report(int rows, double seconds) {
  // Steps of one row only: they are alike, and they are what is tuned for.
  if (rows != 1 || is_settled()) return;
  Candidate& tried = candidates_[trial_ % candidates_.size()];
  tried.seconds = std::min(tried.seconds, seconds);
  ++trial_;
}

int ThreadTuner::decode_threads() const {
  // Fewer only for a gain that is no noise.
  constexpr double kWorthwhile = 0.98;
  const Candidate* best = &candidates_.front();
  for (const Candidate& one : candidates_)
    if (one.seconds < kWorthwhile * best->seconds) best = &one;
  return best->threads;
}

}  // namespace kt::cpu
