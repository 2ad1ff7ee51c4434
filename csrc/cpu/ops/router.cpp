#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

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
  const int experts = num_experts(), k = options_.num_experts_per_tok;
  const std::vector<Rounding> rounding(m, Rounding::kFloat);
  const Activations input(context, x, hidden_size(), m, hidden_size(), rounding.data(), true);
  float* logits = context.arena.take<float>(size_t(m) * experts);
  float* scores = context.arena.take<float>(size_t(context.pool.threads()) * experts);
  const LinearCall call[] = {{weight_.get(), &input, logits, experts}};
  run_linears(context, call);
  context.pool.run(m, [&](int64_t row, int worker) {
    choose(logits + row * experts, scores + int64_t{worker} * experts, ids + row * k,
           weights + row * k);
  });
}

// Ties go to the lower expert id everywhere, as torch.topk gives them on one thread.
void Router::choose(const float* logits, float* choice, int32_t* ids, float* weights) const {
  const int experts = num_experts(), k = options_.num_experts_per_tok;
  const float none = -std::numeric_limits<float>::infinity();
  std::vector<float> score(experts);
  if (options_.sigmoid) {
    for (int e = 0; e < experts; ++e) score[e] = 1.0f / (1.0f + std::exp(-logits[e]));
  } else {
    const float top = *std::max_element(logits, logits + experts);
    float sum = 0.0f;
    for (int e = 0; e < experts; ++e) sum += score[e] = std::exp(logits[e] - top);
    for (int e = 0; e < experts; ++e) score[e] /= sum;
  }
  for (int e = 0; e < experts; ++e)
    choice[e] = score[e] + (options_.bias.empty() ? 0.0f : options_.bias[e]);

  if (options_.n_group > 1) {
    const int groups = options_.n_group, size = experts / groups;
    std::vector<float> best(groups);
    std::vector<int> order(groups);
    std::iota(order.begin(), order.end(), 0);
    for (int g = 0; g < groups; ++g) {
      float first = none, second = none;
      for (int e = g * size; e < (g + 1) * size; ++e) {
        if (choice[e] > first) {
          second = first;
          first = choice[e];
        } else if (choice[e] > second) {
          second = choice[e];
        }
      }
      best[g] = options_.group_sum_of_two ? first + second : first;
    }
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return best[a] > best[b]; });
    for (int i = options_.topk_group; i < groups; ++i)
      std::fill_n(choice + order[i] * size, size, none);
  }

  float sum = 0.0f;
  for (int i = 0; i < k; ++i) {
    const int e = static_cast<int>(std::max_element(choice, choice + experts) - choice);
    ids[i] = e;
    weights[i] = score[e];
    sum += score[e];
    choice[e] = none;
  }
  float factor = options_.routed_scaling_factor;
  if (options_.norm_topk_prob) factor /= sum + 1e-20f;
  for (int i = 0; i < k; ++i) weights[i] *= factor;
}

}  // namespace kt::cpu
