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

/// One pass at a time, so that what is compared with the limits can take turns with them: neighbours
/// of a virtual machine take of its memory's bandwidth within milliseconds.
class LimitMeter {
 public:
  /// Throws InvalidArgument unless bytes is positive.
  LimitMeter(Context& context, int64_t bytes);

  /// Of one reading of the memory, of which each thread has a contiguous share; take several times
  /// the last-level cache.
  double read_gbps();
  double int8_tops();    // 0: no such kernel
  double bf16_tflops();  // of float32 where bf16_is_float32()
  bool bf16_is_float32() const;

 private:
  double tera(void (*kernel)(int64_t), int64_t ops);

  Context& context_;
  int64_t share_;  // bytes of a thread
  os::Memory memory_;
  int32_t sink_ = 0;
};

/// Best of `passes` over `bytes` of fresh memory. Throws InvalidArgument unless both are positive.
Limits measure_limits(Context& context, int64_t bytes, int passes);

}  // namespace kt::cpu
