// Speed of the products of one format on weights that come from memory: what bench.kernels prints.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/ops/context.h"

namespace kt::cpu {

/// Memory to stand for weights of any format, so large that nothing of a window is in a cache when
/// it comes round again. Its bytes are random with every scale a finite number of ordinary size.
class KernelMeter {
 public:
  /// Throws InvalidArgument for bytes < 2 MiB.
  KernelMeter(Context& context, int64_t bytes);

  /// Seconds of each window, in the order they were run.
  struct Times {
    int64_t bytes;                // of a window: one matrix, in R16
    std::vector<double> product;  // y = W x, its rows split evenly between the threads
    std::vector<double> read;     // only reading as many bytes, each time between two products
  };

  /// Matrices [rows, cols] of a format, one after the other through the memory until `windows` have
  /// been multiplied with `tokens` rows of activations. Throws InvalidArgument where the shape does
  /// not fit the format or the memory.
  Times run(int gguf_id, int64_t rows, int64_t cols, int tokens, Rounding rounding, int windows);

 private:
  double read(const uint8_t* data, int64_t bytes);

  Context& context_;
  os::Memory memory_;
  int32_t sink_ = 0;
};

}  // namespace kt::cpu
