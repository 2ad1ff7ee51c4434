// How many workers a generated token is worth.
//
// Prompts are bound by arithmetic: every core helps. Generated tokens are bound by memory, which a
// part of the cores of a large socket may already exhaust; the others then only disturb and wait at
// the barriers. Which part that is, is found by trying during the first tokens. Results do not
// depend on it: no sum crosses workers.
#pragma once

#include <limits>
#include <vector>

namespace kt::cpu {

class ThreadTuner {
 public:
  /// `threads`: workers there are. With fewer than four every one counts and nothing is tried.
  explicit ThreadTuner(int threads);

  /// Workers for a step of `rows` rows.
  int choose(int rows) const;

  /// What a step took that ran as choose() said.
  void report(int rows, double seconds);

  /// Takes part in trials only up to this; later steps run with the fastest count.
  bool is_settled() const { return trial_ >= kTrials * static_cast<int>(candidates_.size()); }
  int decode_threads() const;
  int prompt_threads() const { return candidates_.front().threads; }

 private:
  static constexpr int kDecodeRows = 4;  // as many rows are still bound by memory
  static constexpr int kTrials = 4;      // steps per candidate; the fastest counts

  struct Candidate {
    int threads;
    double seconds = std::numeric_limits<double>::infinity();
  };
  std::vector<Candidate> candidates_;  // all workers first
  int trial_ = 0;                      // candidates take turns, so that a disturbance hits all
};

}  // namespace kt::cpu
