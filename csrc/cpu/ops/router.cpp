#include <algorithm>
#include <limits>

#include "base/error.h"
#include "cpu/ops/ffn.h"

namespace kt::cpu {

Router::Router(std::shared_ptr<const Linear> weight, RouterOptions options)
    : weight_(std::move(weight)), options_(std::move(options)) {
  const int experts = num_experts(), k = options_.num_experts_per_tok;
  KT_CHECK(k > 0 && k <= experts, "num_experts_per_tok=", k, " must be in 1..", experts);
  KT_CHECK(options_.bias.empty() || static_cast<int>(options_.bias.size()) == experts,
           "router bias of ", options_.bias.size(), " values for ", experts, " experts");
  KT_CHECK(options_.n_group > 0 && experts % options_.n_group == 0, "n_group=", options_.n_group,
           " must divide ", experts, " experts");
  KT_CHECK(options_.topk_group > 0 && options_.topk_group <= options_.n_group, "topk_group=",
           options_.topk_group, " must be in 1..", options_.n_group);
  const int reachable = experts / options_.n_group * options_.topk_group;
  KT_CHECK(k <= reachable, "num_experts_per_tok=", k, " is more than the ", reachable, " experts of ",
           options_.topk_group, " groups");
  KT_CHECK(!options_.group_sum_of_two || experts / options_.n_group >= 2,
           "groups of one expert have no two best");
}

void Router::forward(Context& context, const float* x, int m, int32_t* ids, float* weights) const {
  Arena::Scope scope(context.arena);
  const PhaseScope phase(context.phases, Phase::kRouter);
  Arena& arena = context.arena;
  const int experts = num_experts(), k = options_.num_experts_per_tok;
  Rounding* rounding = arena.take<Rounding>(m);
  std::fill_n(rounding, m, Rounding::kFloat);
  const Activations input(context, x, hidden_size(), m, hidden_size(), rounding, true);
  float* logits = arena.take<float>(size_t(m) * experts);
  float* scratch = arena.take<float>(size_t(context.pool.threads()) * scratch_size());
  const LinearCall call[] = {{weight_.get(), &input, logits, experts}};
  run_linears(context, call);
  const int64_t pieces = pieces_for(context, m, 8);
  context.pool.run(pieces, [&](int64_t index, int worker) {
    const Range range = piece(m, pieces, index);
    for (int64_t row = range.begin; row < range.end; ++row)
      choose(context.kernels, logits + row * experts, scratch + worker * scratch_size(),
             ids + row * k, weights + row * k);
  });
}

namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr int kBlock = 16;  // experts per running maximum of the choice

// Index of the largest, the lowest of equals.
int best_of(const float* x, int count) {
  int best = 0;
  for (int i = 1; i < count; ++i) best = x[i] > x[best] ? i : best;
  return best;
}

}  // namespace

// Scores, the values chosen by, their maxima per block, and the groups' scores.
int64_t Router::scratch_size() const {
  const int64_t experts = num_experts();
  return 2 * experts + (experts + kBlock - 1) / kBlock + options_.n_group;
}

// Ties go to the lower expert id everywhere, as torch.topk gives them on one thread.
void Router::choose(const KernelTable& kernels, const float* logits, float* scratch, int32_t* ids,
                    float* weights) const {
  const int experts = num_experts(), k = options_.num_experts_per_tok;
  float* score = scratch;
  float* choice = score + experts;
  float* block_top = choice + experts;
  float* group_score = block_top + (experts + kBlock - 1) / kBlock;
  if (options_.sigmoid)
    kernels.sigmoid(logits, experts, score);
  else
    kernels.softmax(logits, experts, score);
  std::copy_n(score, experts, choice);
  if (!options_.bias.empty()) kernels.axpy(1.0f, options_.bias.data(), experts, choice);

  if (options_.n_group > 1) {
    const int groups = options_.n_group, size = experts / groups;
    for (int g = 0; g < groups; ++g) {
      float first = kNone, second = kNone;
      for (int e = g * size; e < (g + 1) * size; ++e) {
        second = std::max(second, std::min(first, choice[e]));
        first = std::max(first, choice[e]);
      }
      group_score[g] = options_.group_sum_of_two ? first + second : first;
    }
    // A group takes part if fewer than topk_group others are better, or equal and before it.
    for (int g = 0; g < groups; ++g) {
      int better = 0;
      for (int other = 0; other < groups; ++other)
        better += group_score[other] > group_score[g] ||
                  (other < g && group_score[other] == group_score[g]);
      if (better >= options_.topk_group) std::fill_n(choice + g * size, size, kNone);
    }
  }

  const int blocks = (experts + kBlock - 1) / kBlock;
  const auto block_best = [&](int b) {
    return b * kBlock + best_of(choice + b * kBlock, std::min(kBlock, experts - b * kBlock));
  };
  for (int b = 0; b < blocks; ++b) block_top[b] = choice[block_best(b)];
  float sum = 0.0f;
  for (int i = 0; i < k; ++i) {
    const int b = best_of(block_top, blocks), e = block_best(b);
    ids[i] = e;
    weights[i] = score[e];
    sum += score[e];
    choice[e] = kNone;
    block_top[b] = choice[block_best(b)];
  }
  float factor = options_.routed_scaling_factor;
  if (options_.norm_topk_prob) factor /= sum + 1e-20f;
  for (int i = 0; i < k; ++i) weights[i] *= factor;
}

}  // namespace kt::cpu
