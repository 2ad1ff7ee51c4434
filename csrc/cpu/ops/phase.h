// Where a step's time goes: seconds per kind of work, kept only when somebody asked for it.
#pragma once

#include <array>

#include "base/os.h"

namespace kt::cpu {

enum class Phase { kOther, kNorm, kDense, kAttention, kRouter, kExperts, kHead, kSampling };

inline constexpr std::array<const char*, 8> kPhaseNames = {
    "other", "norm", "dense", "attention", "router", "experts", "head", "sampling"};

/// Seconds per phase. Every moment between start() and stop() belongs to exactly one of them: the
/// innermost PhaseScope that is open.
class PhaseTimes {
 public:
  void start() { since_ = os::seconds(), current_ = Phase::kOther; }
  void stop() { enter(Phase::kOther); }
  /// Returns the phase that was current.
  Phase enter(Phase phase) {
    const double now = os::seconds();
    seconds_[static_cast<int>(current_)] += now - since_;
    since_ = now;
    const Phase before = current_;
    current_ = phase;
    return before;
  }
  double seconds(Phase phase) const { return seconds_[static_cast<int>(phase)]; }

 private:
  std::array<double, kPhaseNames.size()> seconds_{};
  double since_ = 0;
  Phase current_ = Phase::kOther;
};

/// Counts its lifetime to `phase`; does nothing where `times` is null. For the thread that runs the
/// step, never for workers.
class PhaseScope {
 public:
  PhaseScope(PhaseTimes* times, Phase phase) : times_(times) {
    if (times_) before_ = times_->enter(phase);
  }
  ~PhaseScope() {
    if (times_) times_->enter(before_);
  }
  PhaseScope(const PhaseScope&) = delete;
  PhaseScope& operator=(const PhaseScope&) = delete;

 private:
  PhaseTimes* times_;
  Phase before_ = Phase::kOther;
};

}  // namespace kt::cpu
