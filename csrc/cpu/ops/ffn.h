// Feed-forward operators: the gated MLP, the router, routed experts, and the block of all three.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "cpu/ops/linear.h"

namespace kt::cpu {

/// A feed-forward operator: [m, hidden] -> [m, hidden].
class FeedForward {
 public:
  virtual ~FeedForward() = default;
  /// out must not overlap x; rows are hidden_size floats, contiguous.
  virtual void forward(Context& context, const float* x, int m, const Rounding* rounding,
                       float* out) const = 0;
  /// The matrices it multiplies first, together.
  virtual std::span<const Matrix* const> first_weights() const = 0;
  virtual int64_t hidden_size() const = 0;
};

/// Where an expert's weights are at the moment. Code asks the table; none computes an address.
enum class Where : uint8_t { kRam, kGpuSlot, kDisk };

struct ExpertEntry {
  Where where = Where::kRam;
  bool ready = true;
  std::shared_ptr<const Matrix> gate, up;  // [intermediate, hidden]
  std::shared_ptr<const Matrix> down;      // [hidden, intermediate]
};

/// down(silu(gate x) * (up x)).
class Mlp : public FeedForward {
 public:
  /// gate, up: [intermediate, hidden]; down: [hidden, intermediate]. Throws InvalidArgument.
  Mlp(std::shared_ptr<const Linear> gate, std::shared_ptr<const Linear> up,
      std::shared_ptr<const Linear> down);
  void forward(Context& context, const float* x, int m, const Rounding* rounding,
               float* out) const override;
  std::span<const Matrix* const> first_weights() const override { return first_; }
  int64_t hidden_size() const override { return gate_->cols(); }
  /// Whether it is nothing but its three matrices: no bias, no adapter.
  bool is_plain() const;
  /// Its matrices as Experts take them. What is_plain() excludes is not in it.
  ExpertEntry as_expert() const;

 private:
  std::shared_ptr<const Linear> gate_, up_, down_;
  std::vector<const Matrix*> first_, last_;
};

/// How a router turns logits into num_experts_per_tok weighted experts.
struct RouterOptions {
  int num_experts_per_tok = 0;
  bool sigmoid = false;       // else softmax over all experts
  std::vector<float> bias;    // added for the choice only (DeepSeek-V3), or empty
  int n_group = 1;            // experts stand in equal groups ...
  int topk_group = 1;         // ... of which only the best take part
  bool group_sum_of_two = false;  // a group's score: sum of its two best (V3), else its best (V2)
  bool norm_topk_prob = false;    // divide the chosen weights by their sum
  float routed_scaling_factor = 1.0f;
};

/// Chooses experts. Always in float: a flipped expert costs more than the product saves.
class Router {
 public:
  /// weight: [num_experts, hidden]. Throws InvalidArgument for options that do not fit.
  Router(std::shared_ptr<const Linear> weight, RouterOptions options);
  /// x: [m, hidden]; ids, weights: [m, num_experts_per_tok].
  void forward(Context& context, const float* x, int m, int32_t* ids, float* weights) const;
  const Matrix& weight() const { return weight_->weight(); }
  int num_experts() const { return static_cast<int>(weight_->rows()); }
  int num_experts_per_tok() const { return options_.num_experts_per_tok; }
  int64_t hidden_size() const { return weight_->cols(); }

 private:
  int64_t scratch_size() const;
  void choose(const KernelTable& kernels, const float* logits, float* scratch, int32_t* ids,
              float* weights) const;

  std::shared_ptr<const Linear> weight_;
  RouterOptions options_;
};

/// An expert that every token meets beside those chosen for it.
struct SharedExpert {
  const ExpertEntry* entry = nullptr;  // null: there is none
  const float* weights = nullptr;      // [m]: what its answer is multiplied with
};

/// Routed experts of one layer, in two jobs of the pool: gate, up and activation; then down and the
/// weighted sum. Tokens are sorted by expert, so each expert's weights are read once per step; a
/// shared expert is one more, with all tokens.
class Experts {
 public:
  /// Throws InvalidArgument where shapes differ between experts.
  explicit Experts(std::vector<ExpertEntry> table);
  /// out = sum_k weights expert(x), then + shared. x: [m, hidden]; ids, weights: [m, k]; out:
  /// [m, hidden], overwritten. An id of -1 is left to whoever else computes it; ids outside the
  /// table throw InvalidArgument.
  void forward(Context& context, const float* x, int m, int k, const int32_t* ids,
               const float* weights, const Rounding* rounding, float* out,
               SharedExpert shared = {}) const;
  int num_experts() const { return static_cast<int>(table_.size()); }
  int64_t hidden_size() const { return table_[0].gate->cols(); }
  int64_t intermediate_size() const { return table_[0].gate->rows(); }

 private:
  std::vector<ExpertEntry> table_;
};

/// Router, routed experts and an always active expert: sum_k w_k expert_k(x) + gate(x) shared(x).
class MoeBlock : public FeedForward {
 public:
  /// shared may be null; shared_gate ([1, hidden], a sigmoid on the shared expert, Qwen2-MoE) too.
  MoeBlock(std::shared_ptr<const Router> router, std::shared_ptr<const Experts> experts,
           std::shared_ptr<const Mlp> shared, std::shared_ptr<const Linear> shared_gate);
  void forward(Context& context, const float* x, int m, const Rounding* rounding,
               float* out) const override;
  std::span<const Matrix* const> first_weights() const override { return first_; }
  int64_t hidden_size() const override { return experts_->hidden_size(); }

 private:
  std::shared_ptr<const Router> router_;
  std::shared_ptr<const Experts> experts_;
  std::shared_ptr<const Mlp> shared_;
  std::shared_ptr<const Linear> shared_gate_;
  std::vector<const Matrix*> first_;
};

}  // namespace kt::cpu
