// From how many rows on a prompt's experts come to the card instead of being computed on the CPU:
// learned from the steps themselves, because it depends on cores, memory, PCIe and the model.
//
// The CPU's time grows with the rows; the card's is that of bringing every expert, nearly whatever
// the rows, until its arithmetic takes longer. So a time per row of the one and a time per size of
// the other say which is shorter.
#pragma once

#include <algorithm>
#include <bit>

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
    const double seconds = stream_seconds(rows);
    if (seconds == 0) return true;
    return cpu_seconds_per_row_ > 0 && cpu_seconds_per_row_ * rows > seconds;
  }
  /// What a step took. The first that streams is not counted: it also loads kernels.
  void took(int rows, bool streamed, double seconds) {
    if (rows < kLeastRows) return;
    if (!streamed) return learn(cpu_seconds_per_row_, seconds / rows);
    if (++streamed_ == 1) return;
    Size& size = sizes_[size_of(rows)];
    size.rows = rows;
    learn(size.seconds, seconds);
  }

 private:
  /// Steps of 2^i ... 2^(i + 1) - 1 rows.
  struct Size {
    int rows = 0;
    double seconds = 0;
  };
  static constexpr int kSizes = 32;
  static int size_of(int rows) { return std::bit_width(static_cast<unsigned>(rows)) - 1; }
  static void learn(double& known, double now) {
    known = known == 0 ? now : 0.75 * known + 0.25 * now;
  }
  /// Of a step that streams; 0: nothing is known. A size that was not tried takes what the next
  /// smaller one does, or a larger one's by the row: at the best, so that it is tried.
  double stream_seconds(int rows) const {
    const int own = size_of(rows);
    for (int i = own; i >= 0; --i)
      if (sizes_[i].seconds > 0) return sizes_[i].seconds;
    for (int i = own + 1; i < kSizes; ++i)
      if (sizes_[i].seconds > 0) return sizes_[i].seconds * rows / sizes_[i].rows;
    return 0;
  }

  int from_;
  int streamed_ = 0;
  Size sizes_[kSizes];
  double cpu_seconds_per_row_ = 0;
};

}  // namespace kt::cuda
