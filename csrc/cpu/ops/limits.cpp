#include "cpu/ops/limits.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/error.h"

namespace kt::cpu {

LimitMeter::LimitMeter(Context& context, int64_t bytes)
    : context_(context),
      share_(std::max<int64_t>(bytes / context.pool.threads() / 512, 1) * 512),
      memory_(static_cast<size_t>(share_) * context.pool.threads()) {
  KT_CHECK(bytes > 0, "limits: bytes=", bytes, " must be positive");
  // Written to, or every page would be the one zero page.
  context.pool.run(context.pool.threads(), [&](int64_t index, int) {
    std::memset(memory_.data() + index * share_, static_cast<int>(index) + 1, share_);
  });
}

double LimitMeter::read_gbps() {
  const int threads = context_.pool.threads();
  std::atomic<int32_t> sum{0};
  const double start = os::seconds();
  context_.pool.run(threads, [&](int64_t index, int) {
    sum += context_.kernels.limits.read(memory_.data() + index * share_, share_);
  });
  const double seconds = os::seconds() - start;
  sink_ ^= sum;
  return static_cast<double>(share_) * threads / seconds * 1e-9;
}

double LimitMeter::tera(void (*kernel)(int64_t), int64_t ops) {
  if (!kernel) return 0.0;
  constexpr int64_t kRounds = 5'000'000;  // 10 to 20 ms: short enough for some to be undisturbed
  const double start = os::seconds();
  context_.pool.run(context_.pool.threads(), [&](int64_t, int) { kernel(kRounds); });
  const double seconds = os::seconds() - start;
  return static_cast<double>(kRounds * ops) * context_.pool.threads() / seconds * 1e-12;
}

double LimitMeter::int8_tops() {
  const LimitKernels& kernels = context_.kernels.limits;
  return tera(kernels.int8, kernels.int8_ops);
}

bool LimitMeter::bf16_is_float32() const {
  return !context_.kernels.limits.bf16 || !__builtin_cpu_supports("avx512bf16");
}

double LimitMeter::bf16_tflops() {
  const LimitKernels& kernels = context_.kernels.limits;
  return bf16_is_float32() ? tera(kernels.float32, kernels.float32_ops)
                           : tera(kernels.bf16, kernels.bf16_ops);
}

Limits measure_limits(Context& context, int64_t bytes, int passes) {
  KT_CHECK(passes > 0, "limits: passes=", passes, " must be positive");
  LimitMeter meter(context, bytes);
  Limits best{context.pool.threads(), 0.0, 0.0, 0.0, meter.bf16_is_float32()};
  for (int pass = 0; pass < passes; ++pass) {
    best.read_gbps = std::max(best.read_gbps, meter.read_gbps());
    best.int8_tops = std::max(best.int8_tops, meter.int8_tops());
    best.bf16_tflops = std::max(best.bf16_tflops, meter.bf16_tflops());
  }
  return best;
}

}  // namespace kt::cpu
