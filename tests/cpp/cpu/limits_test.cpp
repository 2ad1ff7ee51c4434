// The meters that benchmarks divide by: they must read all they say they read.
#include "cpu/ops/limits.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"
#include "cpu/isa.h"

namespace kt::cpu {
namespace {

TEST(Limits, EveryLineIsRead) {
  constexpr int64_t kBytes = 4096;
  for (int i = 0; i < isa_count(); ++i) {
    if (!isa_at(i).usable) continue;
    const LimitKernels& limits = kernels_of(isa_at(i).name).limits;
    alignas(64) uint8_t bytes[kBytes] = {};
    for (int64_t line = 0; line < kBytes; line += 64) {
      const int32_t mark = static_cast<int32_t>(line) + 1;
      std::memcpy(bytes + line, &mark, sizeof mark);
      EXPECT_EQ(limits.read(bytes, kBytes), mark) << isa_at(i).name << ", byte " << line;
      std::memset(bytes + line, 0, 64);
    }
  }
}

TEST(Limits, AreMeasuredOrRefused) {
  Context context(2);
  const Limits limits = measure_limits(context, 1 << 20, 1);
  EXPECT_EQ(limits.threads, 2);
  EXPECT_GT(limits.read_gbps, 0.0);
  EXPECT_EQ(limits.int8_tops > 0.0, context.kernels.limits.int8 != nullptr);
  EXPECT_EQ(limits.bf16_tflops > 0.0, context.kernels.limits.float32 != nullptr);
  EXPECT_THROW(measure_limits(context, 0, 1), InvalidArgument);
  EXPECT_THROW(measure_limits(context, 1 << 20, 0), InvalidArgument);
}

}  // namespace
}  // namespace kt::cpu
