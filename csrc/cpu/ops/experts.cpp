// Experts::forward: tokens sorted by expert, then jobs of the pool. For many tokens:
//
//   1  a run of rows of one expert's gate and up, for all its tokens, and the activation
//   2  rounding of the activations
//   3  a run of output rows of every expert's down, added up in the order of expert ids
//
// For few tokens, where reading the weights is all that takes time, whole matrices follow one
// another in a worker's stream instead (row_chunks.h): half a megabyte at a time reaches 90 % of
// the read bandwidth, 60 KB only 60 % (Zen 4, two cores).
//
//   1  gate, up       2  activation and rounding
//   3  down           4  the answers added up, in the order of expert ids
//
// Whoever adds up owns its output rows of every token, so the sums need no lock and do not depend
// on what the threads do.
#include <algorithm>

#include "base/error.h"
#include "cpu/ops/ffn.h"
#include "cpu/ops/row_chunks.h"

namespace kt::cpu {
namespace {

// One expert's part of a step.
struct Work {
  const ExpertEntry* expert;
  int count;           // tokens
  const int* token;    // [count]: rows of x and of out
  const float* share;  // [count]: what the answer is multiplied with
  float* gate;         // [count, intermediate], activated before down
  float* up;
  const Activations* activated;  // all of them, and which are this expert's
  const int* rows;               // [count]
  float* answers;                // [count, hidden]; only for few

  int64_t intermediate() const { return expert->gate->rows(); }
};

// Pieces per thread: the more there are, the sooner the last thread is done.
constexpr int kPieces = 24;
// Tokens times experts up to which reading takes the time.
constexpr int kFewAssignments = 64;

class Step {
 public:
  Step(Context& context, int m, int64_t hidden) : context_(context), m_(m), hidden_(hidden) {}

  void set_work(std::span<const Work> work) {
    work_ = work;
    for (const Work& w : work) {
      total_ += w.count;
      most_tokens_ = std::max(most_tokens_, w.count);
    }
    const int threads = context_.pool.threads();
    scratch_ = context_.arena.take<void*>(size_t(threads) * 2 * most_tokens_);
    pointers_ = context_.arena.take<float*>(size_t(threads) * most_tokens_);
    pieces_ = int64_t{threads} * kPieces;
  }

  bool is_few() const { return total_ <= kFewAssignments; }

  // The matrices of the jobs below, in their order.
  void prepare_few() {
    const Matrix** both = context_.arena.take<const Matrix*>(2 * work_.size());
    const Matrix** down = context_.arena.take<const Matrix*>(work_.size());
    for (size_t i = 0; i < work_.size(); ++i) {
      both[2 * i] = work_[i].expert->gate.get();
      both[2 * i + 1] = work_[i].expert->up.get();
      down[i] = work_[i].expert->down.get();
    }
    gate_and_up_ = {both, 2 * work_.size()};
    down_ = {down, work_.size()};
    expect_rows(context_, gate_and_up_);
  }

  // gate = gate x, up = up x
  void run_gate_and_up_of_few(const Activations& x) const {
    run_rows(gate_and_up_, down_, [&](const RowChunk& chunk, int worker, NextRows next) {
      const Work& w = work_[chunk.matrix / 2];
      multiply(*gate_and_up_[chunk.matrix], x, w.token, w.count, chunk.groups,
               chunk.matrix % 2 == 0 ? w.gate : w.up, worker, next);
    });
  }

  // out = sum of share * down(gate), expert by expert
  void run_down_of_few(float* out) const {
    run_rows(down_, context_.next, [&](const RowChunk& chunk, int worker, NextRows next) {
      const Work& w = work_[chunk.matrix];
      multiply(*down_[chunk.matrix], *w.activated, w.rows, w.count, chunk.groups, w.answers,
               worker, next);
    });
    const int64_t groups = (hidden_ + 15) / 16;
    const int64_t parts = std::min<int64_t>(context_.pool.threads(), groups);
    context_.pool.run(parts, [&](int64_t index, int) {
      const Range part = piece(groups, parts, index);
      const int64_t row = part.begin * 16, rows = std::min(part.end * 16, hidden_) - row;
      for (int t = 0; t < m_; ++t) std::fill_n(out + t * hidden_ + row, rows, 0.0f);
      for (const Work& w : work_) {
        for (int i = 0; i < w.count; ++i)
          context_.kernels.axpy(w.share[i], w.answers + i * hidden_ + row, rows,
                                out + w.token[i] * hidden_ + row);
      }
    });
  }

  // gate = silu(gate x) * (up x)
  void run_gate_and_up(const Activations& x) const {
    struct Piece {
      const Work* work;
      Range groups;
    };
    // As many pieces for an expert as its products are of all, in whole pairs of row groups.
    Piece* pieces = context_.arena.take<Piece>(pieces_ + work_.size());
    int64_t count = 0, products = 0;
    for (const Work& w : work_) products += w.count * w.intermediate();
    for (const Work& w : work_) {
      const int64_t pairs = (w.intermediate() + 31) / 32, groups = (w.intermediate() + 15) / 16;
      const int64_t parts =
          std::clamp<int64_t>(pieces_ * w.count * w.intermediate() / products, 1, pairs);
      for (int64_t i = 0; i < parts; ++i) {
        const Range range = piece(pairs, parts, i);
        pieces[count++] = {&w, {range.begin * 2, std::min(range.end * 2, groups)}};
      }
    }
    context_.pool.run(count, [&](int64_t index, int worker) {
      const Work& w = *pieces[index].work;
      const Range groups = pieces[index].groups;
      const int64_t inner = w.intermediate();
      const int64_t row = groups.begin * 16, rows = std::min(groups.end * 16, inner) - row;
      const Matrix& up = *w.expert->up;
      const Piece& after = pieces[std::min(index + 1, count - 1)];
      multiply(*w.expert->gate, x, w.token, w.count, groups, w.gate, worker, {&up, groups.begin});
      multiply(up, x, w.token, w.count, groups, w.up, worker,
               {after.work->expert->gate.get(), after.groups.begin});
      for (int i = 0; i < w.count; ++i) {
        float* gate = w.gate + i * inner + row;
        context_.kernels.swiglu(gate, w.up + i * inner + row, rows, gate);
      }
    });
  }

  // out = sum of share * down(gate), expert by expert
  void run_down(float* out) const {
    // In whole pairs of row groups, which the kernels multiply together.
    const int64_t groups = (hidden_ + 15) / 16, pairs = (groups + 1) / 2;
    const int64_t slabs = std::clamp<int64_t>(pieces_, 1, pairs);
    const int64_t slab_rows = (pairs + slabs - 1) / slabs * 32;
    const int threads = context_.pool.threads();
    float* partial = context_.arena.take<float>(size_t(threads) * most_tokens_ * slab_rows);
    context_.pool.run(slabs, [&](int64_t index, int worker) {
      const Range range = piece(pairs, slabs, index);
      const Range part = {range.begin * 2, std::min(range.end * 2, groups)};
      const int64_t row = part.begin * 16, rows = std::min(part.end * 16, hidden_) - row;
      float** y = pointers(worker);
      for (int t = 0; t < m_; ++t) std::fill_n(out + t * hidden_ + row, rows, 0.0f);
      for (const Work& w : work_) {
        for (int i = 0; i < w.count; ++i)
          y[i] = partial + (int64_t{worker} * most_tokens_ + i) * slab_rows;
        const bool is_last = &w == &work_.back();
        const Work& after = is_last ? work_.front() : *(&w + 1);
        matmul_rows(context_.kernels, *w.expert->down, *w.activated, w.rows, w.count, part, y,
                    scratch(worker), {after.expert->down.get(), is_last ? part.end : part.begin});
        for (int i = 0; i < w.count; ++i)
          context_.kernels.axpy(w.share[i], y[i], rows, out + w.token[i] * hidden_ + row);
      }
    });
  }

 private:
  // Calls body(chunk, worker, next) for all rows of the matrices, behind which come `after`.
  template <class Body>
  void run_rows(std::span<const Matrix* const> matrices, std::span<const Matrix* const> after,
                Body&& body) const {
    const std::span<const RowChunk> chunks = row_chunks(context_, matrices);
    expect_rows(context_, after);
    context_.pool.run(static_cast<int64_t>(chunks.size()), [&](int64_t index, int worker) {
      const RowChunk& next = chunk_after(chunks, index);
      body(chunks[index], worker, {matrices[next.matrix], next.groups.begin});
    });
  }

  // Rows of a group range: out [count, rows of the matrix].
  void multiply(const Matrix& matrix, const Activations& x, const int* tokens, int count,
                Range groups, float* out, int worker, NextRows next = {}) const {
    float** y = pointers(worker);
    for (int i = 0; i < count; ++i) y[i] = out + i * matrix.rows() + groups.begin * 16;
    matmul_rows(context_.kernels, matrix, x, tokens, count, groups, y, scratch(worker), next);
  }

  void** scratch(int worker) const { return scratch_ + int64_t{worker} * 2 * most_tokens_; }
  float** pointers(int worker) const { return pointers_ + int64_t{worker} * most_tokens_; }

  Context& context_;
  int m_;
  int64_t hidden_;
  std::span<const Work> work_;
  std::span<const Matrix* const> gate_and_up_, down_;  // only for few
  int64_t total_ = 0;
  int most_tokens_ = 0;
  int64_t pieces_ = 1;
  void** scratch_ = nullptr;
  float** pointers_ = nullptr;
};

void check_expert(const ExpertEntry& e, int64_t hidden) {
  const int64_t intermediate = e.gate->rows();
  KT_CHECK(e.gate->cols() == hidden && e.up->rows() == intermediate && e.up->cols() == hidden &&
               e.down->rows() == hidden && e.down->cols() == intermediate,
           e.gate->name(), ": expert shapes do not fit ", intermediate, " x ", hidden);
}

// Assignments sorted by expert, those to nobody left out; within one, in order of tokens.
struct Sorted {
  int* start;    // [experts + 1]
  int* token;    // [assignments]
  float* share;  // [assignments]
};

Sorted sort_by_expert(Arena& arena, int m, int k, int experts, const int32_t* ids,
                      const float* weights) {
  const int assignments = m * k;
  Sorted sorted = {arena.take<int>(experts + 1), arena.take<int>(assignments),
                   arena.take<float>(assignments)};
  int* start = sorted.start;
  std::fill(start, start + experts + 1, 0);
  for (int a = 0; a < assignments; ++a) {
    KT_CHECK(ids[a] >= -1 && ids[a] < experts, "expert id ", ids[a], " of token ", a / k,
             " is outside 0..", experts - 1);
    if (ids[a] >= 0) ++start[ids[a] + 1];
  }
  for (int e = 0; e < experts; ++e) start[e + 1] += start[e];
  int* fill = arena.take<int>(experts);
  std::copy(start, start + experts, fill);
  for (int a = 0; a < assignments; ++a) {
    if (ids[a] < 0) continue;
    const int at = fill[ids[a]]++;
    sorted.token[at] = a / k;
    sorted.share[at] = weights[a];
  }
  return sorted;
}

}  // namespace

Experts::Experts(std::vector<ExpertEntry> table) : table_(std::move(table)) {
  KT_CHECK(!table_.empty(), "experts: the table is empty");
  for (const ExpertEntry& e : table_) {
    KT_CHECK(e.gate->rows() == intermediate_size(), e.gate->name(), ": expert shapes do not fit ",
             intermediate_size(), " x ", hidden_size());
    check_expert(e, hidden_size());
  }
}

void Experts::forward(Context& context, const float* x, int m, int k, const int32_t* ids,
                      const float* weights, const Rounding* rounding, float* out,
                      SharedExpert shared) const {
  Arena::Scope scope(context.arena);
  const PhaseScope phase(context.phases, Phase::kExperts);
  Arena& arena = context.arena;
  const int64_t hidden = hidden_size(), inner = intermediate_size();
  const int experts = num_experts();
  const int64_t shared_inner = shared.entry ? shared.entry->gate->rows() : 0;
  if (shared.entry) check_expert(*shared.entry, hidden);
  const Sorted sorted = sort_by_expert(arena, m, k, experts, ids, weights);
  const int assignments = sorted.start[experts];
  if (assignments == 0 && (m == 0 || !shared.entry)) {
    std::fill_n(out, m * hidden, 0.0f);
    return;
  }
  const int rows = std::max(assignments, m);
  int* identity = arena.take<int>(rows);
  for (int i = 0; i < rows; ++i) identity[i] = i;
  float* gate = arena.take<float>(assignments * inner + m * shared_inner);
  float* up = arena.take<float>(assignments * inner + m * shared_inner);

  Work* work = arena.take<Work>(experts + 1);
  size_t active = 0;
  for (int e = 0; e < experts; ++e) {
    const int first = sorted.start[e], count = sorted.start[e + 1] - first;
    if (count == 0) continue;
    work[active++] = {&table_[e],
                      count,
                      sorted.token + first,
                      sorted.share + first,
                      gate + first * inner,
                      up + first * inner,
                      nullptr,
                      identity + first,
                      nullptr};
  }
  const size_t routed = active;
  float* shared_gate = gate + assignments * inner;
  if (shared.entry) {
    work[active++] = {shared.entry,   m,           identity,
                      shared.weights, shared_gate, up + assignments * inner,
                      nullptr,        identity,   nullptr};
  }

  Step step(context, m, hidden);
  step.set_work({work, active});
  if (step.is_few()) step.prepare_few();
  const Activations input(context, x, hidden, m, hidden, rounding);
  Rounding* marks = arena.take<Rounding>(assignments);
  for (int a = 0; a < assignments; ++a) marks[a] = rounding[sorted.token[a]];
  const auto set_activated = [&](const Activations& routed_rows, const Activations& shared_rows) {
    for (size_t i = 0; i < active; ++i)
      work[i].activated = i < routed ? &routed_rows : &shared_rows;
  };
  const int shared_rows = shared.entry ? m : 0;
  if (step.is_few()) {
    float* answers = arena.take<float>((assignments + shared_rows) * hidden);
    for (size_t i = 0; i < active; answers += work[i++].count * hidden) work[i].answers = answers;
    step.run_gate_and_up_of_few(input);
    const Activations activated(context, gate, up, assignments, inner, marks);
    const Activations of_shared(context, shared_gate, up + assignments * inner, shared_rows,
                                shared_inner, rounding);
    set_activated(activated, of_shared);
    step.run_down_of_few(out);
  } else {
    step.run_gate_and_up(input);
    const Activations activated(context, gate, inner, assignments, inner, marks);
    const Activations of_shared(context, shared_gate, shared_inner, shared_rows, shared_inner,
                                rounding);
    set_activated(activated, of_shared);
    step.run_down(out);
  }
}

}  // namespace kt::cpu
