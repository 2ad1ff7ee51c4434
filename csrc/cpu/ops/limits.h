// What this machine can do at most with a context's threads and instruction set: the figures that
// benchmarks divide by, measured in the run they are used in.
#pragma once

#include <cstdint>

#include "cpu/ops/context.h"

namespace kt::cpu {

struct Limits {
  int threads;
  double read_gbps;    // 1e9 bytes per second, from memory on huge pages
  double int8_tops;    // 1e12 multiplications and additions of bytes per second; 0: no such kernel
  double bf16_tflops;  // of bf16 dot products; of float32 where the CPU has none for bf16
  bool bf16_is_float32;
};

/// Best of `passes`. Reads `bytes` of fresh memory, of which each thread has a contiguous share, so
/// take several times the last-level cache. Throws InvalidArgument unless both are positive.
Limits measure_limits(Context& context, int64_t bytes, int passes);

}  // namespace kt::cpu
