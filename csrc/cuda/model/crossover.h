// From how many rows on a prompt's experts come to the card instead of being computed on the CPU:
// learned from the steps themselves, because it depends on cores, memory, PCIe and the model.
//
// The CPU's time grows with the rows; the card's is that of bringing every expert, nearly whatever
// the rows. So a time per row of the one and a time of the other say which is shorter.
#pragma once

#include <algorithm>

namespace kt::cuda {

class Crossover {
 public:
  /// Streaming is not thought of below so many rows.
  static constexpr int kLeastRows = 128;
  /// from: streams from so many rows on and learns nothing; 0: learns.
  explicit Crossover(int from) : from_(from) {}

  /// Which way a step of so many rows goes: each is tried once, then the shorter one.
  bool streams(int rows) const {
    if (from_ > 0) return rows >= from_;
    if (rows < kLeastRows) return false;
    if (stream_seconds_ == 0) return true;
    return cpu_seconds_per_row_ > 0 && cpu_seconds_per_row_ * rows > stream_seconds_;
  }
  /// What a step took. The first of a way is not counted: it also loads kernels.
  void took(int rows, bool streamed, double seconds) {
    if (rows < kLeastRows) return;
    int& count = streamed ? streamed_ : computed_;
    if (++count == 1 && streamed) return;
    double& known = streamed ? stream_seconds_ : cpu_seconds_per_row_;
    const double now = streamed ? seconds : seconds / rows;
    known = known == 0 ? now : 0.75 * known + 0.25 * now;
  }

 private:
  int from_;
  int streamed_ = 0, computed_ = 0;
  double stream_seconds_ = 0, cpu_seconds_per_row_ = 0;
};

}  // namespace kt::cuda
