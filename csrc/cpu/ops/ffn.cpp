#include "cpu/ops/ffn.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace kt::cpu {

Mlp::Mlp(std::shared_ptr<const Linear> gate, std::shared_ptr<const Linear> up,
         std::shared_ptr<const Linear> down)
    : gate_(std::move(gate)), up_(std::move(up)), down_(std::move(down)) {
  KT_CHECK(gate_->rows() == up_->rows() && gate_->cols() == up_->cols() &&
               down_->cols() == gate_->rows() && down_->rows() == gate_->cols(),
           gate_->weight().name(), ": gate ", gate_->rows(), " x ", gate_->cols(), ", up ",
           up_->rows(), " x ", up_->cols(), " and down ", down_->rows(), " x ", down_->cols(),
           " do not fit together");
  first_ = {&gate_->weight(), &up_->weight()};
  last_ = {&down_->weight()};
}

bool Mlp::is_plain() const {
  for (const Linear* linear : {gate_.get(), up_.get(), down_.get()})
    if (!linear->bias().empty() || linear->adapter()) return false;
  return true;
}

ExpertEntry Mlp::as_expert() const {
  const auto weight = [](const std::shared_ptr<const Linear>& linear) {
    return std::shared_ptr<const Matrix>(linear, &linear->weight());
  };
  return {Where::kRam, true, weight(gate_), weight(up_), weight(down_)};
}

void Mlp::forward(Context& context, const float* x, int m, const Rounding* rounding,
                  float* out) const {
  Arena::Scope scope(context.arena);
  const int64_t n = gate_->rows();
  const Activations input(context, x, gate_->cols(), m, gate_->cols(), rounding);
  float* gate = context.arena.take<float>(m * n);
  float* up = context.arena.take<float>(m * n);
  const LinearCall first[] = {{gate_.get(), &input, gate, n}, {up_.get(), &input, up, n}};
  run_linears(context, first, last_);
  const int64_t pieces = pieces_for(context, m * n, 4096);
  context.pool.run(pieces, [&](int64_t index, int) {
    const Range range = piece(m * n, pieces, index);
    context.kernels.swiglu(gate + range.begin, up + range.begin, range.end - range.begin,
                           gate + range.begin);
  });
  const Activations inner(context, gate, n, m, n, rounding);
  const LinearCall second[] = {{down_.get(), &inner, out, down_->rows()}};
  run_linears(context, second, context.next);
}

MoeBlock::MoeBlock(std::shared_ptr<const Router> router, std::shared_ptr<const Experts> experts,
                   std::shared_ptr<const Mlp> shared, std::shared_ptr<const Linear> shared_gate)
    : router_(std::move(router)),
      experts_(std::move(experts)),
      shared_(std::move(shared)),
      shared_gate_(std::move(shared_gate)) {
  KT_CHECK(router_->num_experts() == experts_->num_experts(), "router for ",
           router_->num_experts(), " experts, ", experts_->num_experts(), " are there");
  KT_CHECK(router_->hidden_size() == experts_->hidden_size(), "router of hidden size ",
           router_->hidden_size(), ", experts of ", experts_->hidden_size());
  KT_CHECK(!shared_ || shared_->hidden_size() == experts_->hidden_size(),
           "shared expert of hidden size ", shared_ ? shared_->hidden_size() : 0, ", experts of ",
           experts_->hidden_size());
  KT_CHECK(!shared_gate_ || (shared_ && shared_gate_->rows() == 1),
           "a shared expert's gate needs a shared expert and one row");
  first_ = {&router_->weight()};
}

void MoeBlock::forward(Context& context, const float* x, int m, const Rounding* rounding,
                       float* out) const {
  Arena::Scope scope(context.arena);
  const int64_t hidden = hidden_size();
  const int k = router_->num_experts_per_tok();
  int32_t* ids = context.arena.take<int32_t>(m * k);
  float* weights = context.arena.take<float>(m * k);
  router_->forward(context, x, m, ids, weights);
  if (!shared_) {
    experts_->forward(context, x, m, k, ids, weights, rounding, out);
    return;
  }
  float* factor = context.arena.take<float>(m);
  std::fill_n(factor, m, 1.0f);
  if (shared_gate_) {
    const Activations input(context, x, hidden, m, hidden, rounding, /*floats_only=*/true);
    const LinearCall call[] = {{shared_gate_.get(), &input, factor, 1}};
    run_linears(context, call);
    for (int t = 0; t < m; ++t) factor[t] = 1.0f / (1.0f + std::exp(-factor[t]));
  }
  if (shared_->is_plain()) {
    const ExpertEntry entry = shared_->as_expert();
    experts_->forward(context, x, m, k, ids, weights, rounding, out, {&entry, factor});
    return;
  }
  experts_->forward(context, x, m, k, ids, weights, rounding, out);
  float* shared = context.arena.take<float>(m * hidden);
  shared_->forward(context, x, m, rounding, shared);
  context.pool.run(m, [&](int64_t t, int) {
    context.kernels.axpy(factor[t], shared + t * hidden, hidden, out + t * hidden);
  });
}

}  // namespace kt::cpu
