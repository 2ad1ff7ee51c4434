// A warp per token; lane l keeps experts l, l + 32, ... in registers. Everything is a maximum over
// the warp, repeated: two per group for the groups' scores, one per chosen group and expert. Ties
// go to the lower number, as on the CPU.
#include "base/error.h"
#include "cuda/layer/block_reduce.h"
#include "cuda/moe/moe.h"

namespace kt::cuda {

namespace {

struct Best {
  float value;
  int index;
};
KT_DEVICE Best better(Best a, Best b) {
  return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}
KT_DEVICE Best warp_best(Best v) {
  for (unsigned mask = 16; mask; mask /= 2) {
    const Best other{shuffle_xor(v.value, mask), shuffle_xor(v.index, mask)};
    v = better(v, other);
  }
  return v;
}

struct RouterKernel {
  using Params = RouterParams;
  static constexpr int kThreads = 32;
  static constexpr int kMinBlocks = 1;
  static constexpr int kPer = kMaxExperts / 32;
  static constexpr int kNone = 1 << 30;

  KT_DEVICE static void run(const Params& p) {
    const int lane = lane_id();
    const Global<const float> logits =
        Global<const float>(p.logits) + static_cast<int64_t>(block_x()) * p.experts;
    float score[kPer], choice[kPer];
    float top = -infinity(), sum = 0;
    KT_UNROLL
    for (int i = 0; i < kPer; ++i) {
      const int e = i * 32 + lane;
      score[i] = e < p.experts ? float(logits[e]) : -infinity();
      top = max(top, score[i]);
    }
    if (p.sigmoid) {
      KT_UNROLL
      for (int i = 0; i < kPer; ++i) score[i] = 1.0f / (1.0f + exp_fast(-score[i]));
    } else {
      top = warp_max(top);
      KT_UNROLL
      for (int i = 0; i < kPer; ++i) sum += score[i] = exp_fast(score[i] - top);
      sum = warp_sum(sum);
      KT_UNROLL
      for (int i = 0; i < kPer; ++i) score[i] /= sum;
    }
    KT_UNROLL
    for (int i = 0; i < kPer; ++i) {
      const int e = i * 32 + lane;
      choice[i] = e >= p.experts ? -infinity()
                  : p.bias       ? score[i] + Global<const float>(p.bias)[e]
                                 : score[i];
    }
    if (p.n_group > 1) keep_best_groups(p, choice);

    float total = 0;
    const int64_t out = static_cast<int64_t>(block_x()) * p.top_k;
    for (int k = 0; k < p.top_k; ++k) {
      Best best{-infinity(), kNone};
      KT_UNROLL
      for (int i = 0; i < kPer; ++i) best = better(best, {choice[i], i * 32 + lane});
      best = warp_best(best);
      float weight = 0;
      KT_UNROLL
      for (int i = 0; i < kPer; ++i) {
        if (i * 32 + lane != best.index) continue;
        choice[i] = -infinity();
        weight = score[i];
      }
      weight = warp_sum(weight);  // one lane has it
      total += weight;
      if (lane == 0) {
        Global<int32_t>(p.ids)[out + k] = best.index;
        Global<float>(p.weights)[out + k] = weight;
      }
    }
    float factor = p.routed_scaling_factor;
    if (p.norm_topk_prob) factor /= total + 1e-20f;
    if (lane == 0)
      for (int k = 0; k < p.top_k; ++k)
        Global<float>(p.weights)[out + k] = Global<float>(p.weights)[out + k] * factor;
  }

  KT_DEVICE static void keep_best_groups(const Params& p, float (&choice)[kPer]) {
    const int lane = lane_id(), size = p.experts / p.n_group;
    // Lane g keeps the score of group g (there are at most 32).
    float group_score = -infinity();
    for (int g = 0; g < p.n_group; ++g) {
      Best first{-infinity(), kNone}, second{-infinity(), kNone};
      KT_UNROLL
      for (int i = 0; i < kPer; ++i)
        if ((i * 32 + lane) / size == g) first = better(first, {choice[i], i * 32 + lane});
      first = warp_best(first);
      if (p.group_sum_of_two) {
        KT_UNROLL
        for (int i = 0; i < kPer; ++i) {
          const int e = i * 32 + lane;
          if (e / size == g && e != first.index) second = better(second, {choice[i], e});
        }
        second = warp_best(second);
      }
      if (lane == g) group_score = p.group_sum_of_two ? first.value + second.value : first.value;
    }
    uint32_t kept = 0;
    for (int k = 0; k < p.topk_group; ++k) {
      const Best best = warp_best({group_score, lane});
      kept |= 1u << best.index;
      if (lane == best.index) group_score = -infinity();
    }
    KT_UNROLL
    for (int i = 0; i < kPer; ++i)
      if (const int e = i * 32 + lane; e < p.experts && !(kept >> e / size & 1))
        choice[i] = -infinity();
  }
};

}  // namespace

void launch_router(const RouterParams& p) {
  KT_CHECK(p.m > 0, "no tokens");
  KT_CHECK(p.experts > 0 && p.experts <= kMaxExperts, p.experts, " experts; 1 to ", kMaxExperts);
  KT_CHECK(p.n_group > 0 && p.n_group <= 32 && p.experts % p.n_group == 0, "n_group=", p.n_group,
           " must divide ", p.experts, " experts and be at most 32");
  KT_CHECK(p.topk_group > 0 && p.topk_group <= p.n_group, "topk_group=", p.topk_group,
           " must be in 1..", p.n_group);
  KT_CHECK(p.top_k > 0 && p.top_k <= p.experts / p.n_group * p.topk_group, "top_k=", p.top_k,
           " of ", p.experts / p.n_group * p.topk_group, " reachable experts");
  KT_CHECK(!p.group_sum_of_two || p.n_group == 1 || p.experts / p.n_group >= 2,
           "groups of one expert have no two best");
  launch<RouterKernel>({.grid_x = unsigned(p.m), .threads = 32}, p, p.stream);
}

}  // namespace kt::cuda
