#include "cpu/ops/limits.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/error.h"

namespace kt::cpu {
namespace {

// Seconds of the fastest of `passes` jobs with one index per thread.
template <class Body>
double best_seconds(Context& context, int passes, Body&& body) {
  double best = 1e30;
  for (int pass = 0; pass < passes; ++pass) {
    const double start = os::seconds();
    context.pool.run(context.pool.threads(), body);
    best = std::min(best, os::seconds() - start);
  }
  return best;
}

double tera(Context& context, int passes, void (*kernel)(int64_t), int64_t ops) {
  if (!kernel) return 0.0;
  constexpr int64_t kRounds = 5'000'000;  // 10 to 20 ms: short enough for some to be undisturbed
  const double seconds =
      best_seconds(context, passes, [&](int64_t, int) { kernel(kRounds); });
  return static_cast<double>(kRounds * ops) * context.pool.threads() / seconds * 1e-12;
}

double read_gbps(Context& context, int64_t bytes, int passes) {
  const int threads = context.pool.threads();
  const int64_t share = std::max<int64_t>(bytes / threads / 512, 1) * 512;
  const os::Memory memory(static_cast<size_t>(share) * threads);
  std::atomic<int32_t> sink{0};
  context.pool.run(threads, [&](int64_t index, int) {  // or every page would be the one zero page
    std::memset(memory.data() + index * share, static_cast<int>(index) + 1, share);
  });
  const double seconds = best_seconds(context, passes, [&](int64_t index, int) {
    sink += context.kernels.limits.read(memory.data() + index * share, share);
  });
  return static_cast<double>(share) * threads / seconds * 1e-9;
}

}  // namespace

Limits measure_limits(Context& context, int64_t bytes, int passes) {
  KT_CHECK(bytes > 0 && passes > 0, "limits: bytes=", bytes, " and passes=", passes,
           " must be positive");
  const LimitKernels& kernels = context.kernels.limits;
  const bool has_bf16 = kernels.bf16 && __builtin_cpu_supports("avx512bf16");
  Limits limits;
  limits.threads = context.pool.threads();
  limits.read_gbps = read_gbps(context, bytes, passes);
  limits.int8_tops = tera(context, passes, kernels.int8, kernels.int8_ops);
  limits.bf16_is_float32 = !has_bf16;
  limits.bf16_tflops = has_bf16 ? tera(context, passes, kernels.bf16, kernels.bf16_ops)
                                : tera(context, passes, kernels.float32, kernels.float32_ops);
  return limits;
}

}  // namespace kt::cpu
