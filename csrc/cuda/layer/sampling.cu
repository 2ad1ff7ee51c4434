// Sampling: a block per row of logits. The edges of top-k and top-p are found exactly, by bisection
// over the 32-bit order of floats: count (or mass) of what is at least the middle, 32 times over a
// row that stays in L2. The draw runs over kept tokens in order of their numbers.
#include "base/error.h"
#include "cuda/layer/block_reduce.h"
#include "cuda/layer/layer.h"

namespace kt::cuda {

namespace {

/// Floats in the order of unsigned integers.
KT_DEVICE uint32_t order_of(float v) {
  const uint32_t bits = bits_of(v);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct SampleKernel {
  using Params = SampleParams;
  static constexpr int kThreads = 512;
  static constexpr int kMinBlocks = 1;
  static constexpr unsigned kSharedBytes = 2 * kThreads / 32 * 4;

  /// Probability of a token, up to a factor.
  KT_DEVICE static float mass(const Params& p, float logit, float top) {
    return exp_fast((logit - top) / p.temperature);
  }

  KT_DEVICE static void run(const Params& p) {
    const Shared<float> scratch = shared_at<float>(0), sums = shared_at<float>(64);
    const Global<const float> logits =
        Global<const float>(p.logits) + static_cast<int64_t>(block_x()) * p.vocab;
    const Global<int32_t> token(p.token);
    float top = -infinity();
    for (int i = thread_id(); i < p.vocab; i += kThreads) top = max(top, float(logits[i]));
    top = block_max(top, scratch);
    if (p.greedy) {
      // The lowest number among the largest: 2^24 - number is exact in float and larger for lower.
      float best = -1;
      for (int i = thread_id(); i < p.vocab; i += kThreads)
        if (float(logits[i]) == top) best = max(best, static_cast<float>((1 << 24) - i));
      best = block_max(best, scratch);
      if (thread_id() == 0) token[block_x()] = best < 0 ? -1 : (1 << 24) - static_cast<int>(best);
      return;
    }
    uint32_t keep = 0;  // tokens of at least this order
    if (p.top_k > 0 && p.top_k < p.vocab) {
      for (int bit = 31; bit >= 0; --bit) {
        const uint32_t trial = keep | 1u << bit;
        float count = 0;
        for (int i = thread_id(); i < p.vocab; i += kThreads)
          count += order_of(logits[i]) >= trial ? 1.0f : 0.0f;
        if (block_sum(count, scratch) >= static_cast<float>(p.top_k)) keep = trial;
      }
    }
    if (p.top_p < 1.0f) {
      const float wanted = p.top_p * mass_from(p, logits, keep, top, scratch);
      uint32_t edge = 0;
      for (int bit = 31; bit >= 0; --bit) {
        const uint32_t trial = edge | 1u << bit;
        if (trial <= keep || mass_from(p, logits, trial, top, scratch) >= wanted) edge = trial;
      }
      keep = edge;
    }
    if (p.min_p > 0) {
      const uint32_t edge = order_of(top + p.temperature * log_fast(p.min_p));
      keep = edge > keep ? edge : keep;
    }
    // Contiguous parts per thread, so that the draw is over token numbers in order.
    const int part = div_up(p.vocab, kThreads), begin = thread_id() * part;
    const int end = min(begin + part, p.vocab);
    float own = 0;
    for (int i = begin; i < end; ++i)
      if (order_of(logits[i]) >= keep) own += mass(p, logits[i], top);
    float scan = own;  // inclusive, over the warp and then the warps
    for (unsigned delta = 1; delta < 32; delta *= 2) {
      const float below = shuffle_up(scan, delta);
      if (lane_id() >= delta) scan += below;
    }
    if (lane_id() == 31) sums[warp_id()] = scan;
    sync();
    float before = scan - own, total = 0;
    for (unsigned w = 0; w < kThreads / 32; ++w) {
      const float v = sums[w];
      if (w < warp_id()) before += v;
      total += v;
    }
    // The last thread with a share that begins at or before the target.
    const float target = Global<const float>(p.uniform)[block_x()] * total;
    const bool candidate = own > 0 && before <= target;
    const float last = block_max(candidate ? static_cast<float>(thread_id()) : -1.0f, scratch);
    if (last < 0) {
      if (thread_id() == 0) token[block_x()] = -1;
    } else if (thread_id() == static_cast<unsigned>(last)) {
      int pick = -1;
      float sum = before;
      for (int i = begin; i < end; ++i) {
        if (order_of(logits[i]) < keep) continue;
        pick = i;
        sum += mass(p, logits[i], top);
        if (sum > target) break;
      }
      token[block_x()] = pick;
    }
  }

  KT_DEVICE static float mass_from(const Params& p, Global<const float> logits, uint32_t edge,
                                   float top, Shared<float> scratch) {
    float sum = 0;
    for (int i = thread_id(); i < p.vocab; i += kThreads)
      if (order_of(logits[i]) >= edge) sum += mass(p, logits[i], top);
    return block_sum(sum, scratch);
  }
};

}  // namespace

void launch_sample(const SampleParams& p) {
  KT_CHECK(p.rows > 0 && p.vocab > 0 && p.vocab < 1 << 24, p.rows, " rows of ", p.vocab, " logits");
  if (!p.greedy) {
    KT_CHECK(p.temperature > 0, "temperature=", p.temperature, " must be above 0");
    KT_CHECK(p.top_k >= 0, "top_k=", p.top_k, " must not be negative");
    KT_CHECK(p.top_p > 0 && p.top_p <= 1, "top_p=", p.top_p, " must be in (0, 1]");
    KT_CHECK(p.min_p >= 0 && p.min_p <= 1, "min_p=", p.min_p, " must be in [0, 1]");
  }
  launch<SampleKernel>({.grid_x = unsigned(p.rows),
                        .threads = SampleKernel::kThreads,
                        .shared_bytes = SampleKernel::kSharedBytes},
                       p, p.stream);
}

}  // namespace kt::cuda
