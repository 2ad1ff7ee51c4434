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
}

void Mlp::forward(Context& context, const float* x, int m, const Rounding* rounding,
                  float* out) const {
  Arena::Scope scope(context.arena);
  const int64_t n = gate_->rows();
  const Activations input(context, x, gate_->cols(), m, gate_->cols(), rounding);
  float* gate = context.arena.take<float>(m * n);
  float* up = context.arena.take<float>(m * n);
  const LinearCall first[] = {{gate_.get(), &input, gate, n}, {up_.get(), &input, up, n}};
  run_linears(context, first);
  const int64_t pieces = pieces_for(context, m * n, 4096);
  context.pool.run(pieces, [&](int64_t index, int) {
    const Range range = piece(m * n, pieces, index);
    context.kernels.swiglu(gate + range.begin, up + range.begin, range.end - range.begin,
                           gate + range.begin);
  });
  const Activations inner(context, gate, n, m, n, rounding);
  const LinearCall second[] = {{down_.get(), &inner, out, down_->rows()}};
  run_linears(context, second);
}

Experts::Experts(std::vector<ExpertEntry> table) : table_(std::move(table)) {
  KT_CHECK(!table_.empty(), "experts: the table is empty");
  const int64_t hidden = hidden_size(), intermediate = intermediate_size();
  for (const ExpertEntry& e : table_) {
    KT_CHECK(e.gate->rows() == intermediate && e.gate->cols() == hidden &&
                 e.up->rows() == intermediate && e.up->cols() == hidden &&
                 e.down->rows() == hidden && e.down->cols() == intermediate,
             e.gate->name(), ": expert shapes do not fit ", intermediate, " x ", hidden);
  }
}

void Experts::forward(Context& context, const float* x, int m, int k, const int32_t* ids,
                      const float* weights, const Rounding* rounding, float* out) const {
  Arena::Scope scope(context.arena);
  const PhaseScope phase(context.phases, Phase::kExperts);
  Arena& arena = context.arena;
  const int64_t hidden = hidden_size(), inner = intermediate_size();
  const int given = m * k, experts = num_experts();

  // Counting sort of the assignments by expert; within one, in order of tokens.
  int* start = arena.take<int>(experts + 1);
  std::fill(start, start + experts + 1, 0);
  for (int a = 0; a < given; ++a) {
    KT_CHECK(ids[a] >= -1 && ids[a] < experts, "expert id ", ids[a], " of token ", a / k,
             " is outside 0..", experts - 1);
    if (ids[a] >= 0) ++start[ids[a] + 1];
  }
  for (int e = 0; e < experts; ++e) start[e + 1] += start[e];
  const int assignments = start[experts];
  if (assignments == 0) {
    std::fill_n(out, m * hidden, 0.0f);
    return;
  }
  int* fill = arena.take<int>(experts);
  std::copy(start, start + experts, fill);
  int* token = arena.take<int>(assignments);    // token of a sorted assignment
  float* share = arena.take<float>(assignments);  // and its weight
  for (int a = 0; a < given; ++a) {
    if (ids[a] < 0) continue;
    const int at = fill[ids[a]]++;
    token[at] = a / k;
    share[at] = weights[a];
  }
  int* active = arena.take<int>(experts);
  int num_active = 0, most_tokens = 0;
  for (int e = 0; e < experts; ++e) {
    if (start[e + 1] == start[e]) continue;
    active[num_active++] = e;
    most_tokens = std::max(most_tokens, start[e + 1] - start[e]);
  }

  const int threads = context.pool.threads();
  void** scratch = arena.take<void*>(size_t(threads) * 2 * most_tokens);
  float** pointers = arena.take<float*>(size_t(threads) * most_tokens);
  float* gate = arena.take<float>(assignments * inner);
  float* up = arena.take<float>(assignments * inner);
  const Activations input(context, x, hidden, m, hidden, rounding);

  // Phase 1: gate, up and activation of a run of rows of one expert.
  const int64_t inner_groups = (inner + 15) / 16;
  const int64_t parts =
      std::clamp<int64_t>(pieces_for(context, num_active * inner_groups, 4) / num_active, 1,
                          inner_groups);
  context.pool.run(num_active * parts, [&](int64_t index, int worker) {
    const int e = active[index / parts];
    const Range groups = piece(inner_groups, parts, index % parts);
    const int64_t row = groups.begin * 16, rows = std::min(groups.end * 16, inner) - row;
    const int count = start[e + 1] - start[e];
    void** space = scratch + int64_t{worker} * 2 * most_tokens;
    float** y = pointers + int64_t{worker} * most_tokens;
    for (float* base : {gate, up}) {
      for (int i = 0; i < count; ++i) y[i] = base + (start[e] + i) * inner + row;
      matmul_rows(context.kernels, base == gate ? *table_[e].gate : *table_[e].up, input,
                  token + start[e], count, groups, y, space);
    }
    for (int i = 0; i < count; ++i) {
      float* g = gate + (start[e] + i) * inner + row;
      context.kernels.swiglu(g, up + (start[e] + i) * inner + row, rows, g);
    }
  });

  Rounding* inner_rounding = arena.take<Rounding>(assignments);
  for (int a = 0; a < assignments; ++a) inner_rounding[a] = rounding[token[a]];
  const Activations activated(context, gate, inner, assignments, inner, inner_rounding);
  int* identity = arena.take<int>(assignments);
  for (int a = 0; a < assignments; ++a) identity[a] = a;

  // Phase 2: down. A piece owns a run of output rows of every token, so sums need no lock and are
  // made in the order of expert ids, whatever the threads do.
  const int64_t out_groups = (hidden + 15) / 16;
  const int64_t slabs = std::clamp<int64_t>(pieces_for(context, out_groups, 1), 1, out_groups);
  const int64_t slab_rows = ((out_groups + slabs - 1) / slabs + 1) * 16;
  float* partial = arena.take<float>(size_t(threads) * most_tokens * slab_rows);
  context.pool.run(slabs, [&](int64_t index, int worker) {
    const Range groups = piece(out_groups, slabs, index);
    const int64_t row = groups.begin * 16, rows = std::min(groups.end * 16, hidden) - row;
    float* sums = partial + int64_t{worker} * most_tokens * slab_rows;
    void** space = scratch + int64_t{worker} * 2 * most_tokens;
    float** y = pointers + int64_t{worker} * most_tokens;
    for (int t = 0; t < m; ++t) std::fill_n(out + t * hidden + row, rows, 0.0f);
    for (int a = 0; a < num_active; ++a) {
      const int e = active[a], count = start[e + 1] - start[e];
      for (int i = 0; i < count; ++i) y[i] = sums + i * slab_rows;
      matmul_rows(context.kernels, *table_[e].down, activated, identity + start[e], count, groups, y,
                  space);
      for (int i = 0; i < count; ++i)
        context.kernels.axpy(share[start[e] + i], y[i], rows,
                             out + token[start[e] + i] * hidden + row);
    }
  });
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
}

void MoeBlock::forward(Context& context, const float* x, int m, const Rounding* rounding,
                       float* out) const {
  Arena::Scope scope(context.arena);
  const int64_t hidden = hidden_size();
  const int k = router_->num_experts_per_tok();
  int32_t* ids = context.arena.take<int32_t>(m * k);
  float* weights = context.arena.take<float>(m * k);
  router_->forward(context, x, m, ids, weights);
  experts_->forward(context, x, m, k, ids, weights, rounding, out);
  if (!shared_) return;
  float* shared = context.arena.take<float>(m * hidden);
  shared_->forward(context, x, m, rounding, shared);
  float* gate = nullptr;
  if (shared_gate_) {
    gate = context.arena.take<float>(m);
    const Activations input(context, x, hidden, m, hidden, rounding, /*floats_only=*/true);
    const LinearCall call[] = {{shared_gate_.get(), &input, gate, 1}};
    run_linears(context, call);
  }
  context.pool.run(m, [&](int64_t t, int) {
    const float factor = gate ? 1.0f / (1.0f + std::exp(-gate[t])) : 1.0f;
    context.kernels.axpy(factor, shared + t * hidden, hidden, out + t * hidden);
  });
}

}  // namespace kt::cpu
