#include "program/decoder.h"

#include <algorithm>

#include "base/error.h"
#include "quant/convert.h"
#include "quant/formats.h"

namespace kt::program {

namespace {

// Positions of a sequence that are rounded near exactly whatever they are: the first tokens draw
// most of later attention, and their activations are the largest (attention sinks).
constexpr int32_t kExactPositions = 64;

void normalise(cpu::Context& context, const cpu::RmsNorm& norm, const float* x, int m, int64_t n,
               float* out) {
  const cpu::PhaseScope phase(context.phases, cpu::Phase::kNorm);
  const auto one = [&](int64_t row, int) {
    context.kernels.rms_norm(x + row * n, norm.weight.data(), norm.eps, n, out + row * n);
  };
  if (m >= 8) {
    context.pool.run(m, one);
  } else {
    for (int row = 0; row < m; ++row) one(row, 0);
  }
}

void add_rows(cpu::Context& context, const float* x, int m, int64_t n, float* y) {
  const cpu::PhaseScope phase(context.phases, cpu::Phase::kNorm);
  if (m >= 8) {
    context.pool.run(m, [&](int64_t row, int) {
      context.kernels.axpy(1.0f, x + row * n, n, y + row * n);
    });
  } else {
    context.kernels.axpy(1.0f, x, m * n, y);
  }
}

}  // namespace

namespace {

// The workers a step of so many rows is worth, while it runs; what it took goes to the tuner.
class Tuned {
 public:
  Tuned(cpu::Context& context, int rows)
      : context_(context), rows_(rows), tries_(!context.tuner.is_settled()) {
    context_.pool.use(context_.tuner.choose(rows));
    if (tries_) begin_ = os::seconds();
  }
  ~Tuned() {
    if (tries_) context_.tuner.report(rows_, os::seconds() - begin_);
    context_.pool.use(context_.pool.threads());
  }
  Tuned(const Tuned&) = delete;
  Tuned& operator=(const Tuned&) = delete;

 private:
  cpu::Context& context_;
  int rows_;
  bool tries_;
  double begin_ = 0;
};

// The step's clock, in the context while the step runs.
class Timed {
 public:
  Timed(cpu::Context& context, cpu::PhaseTimes* times) : context_(context), times_(times) {
    if (times_) times_->start();
    context_.phases = times_;
  }
  ~Timed() {
    if (times_) times_->stop();
    context_.phases = nullptr;
  }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  cpu::Context& context_;
  cpu::PhaseTimes* times_;
};

}  // namespace

cpu::Rounding rounding_of(Arithmetic arithmetic, int32_t position, bool is_prompt) {
  if (arithmetic == Arithmetic::kF32) return cpu::Rounding::kFloat;
  if (arithmetic == Arithmetic::kExact || !is_prompt || position < kExactPositions)
    return cpu::Rounding::kExact;
  return cpu::Rounding::kDigit;
}

Embedding::Embedding(std::span<const uint8_t> blocks, std::shared_ptr<void> keep, int gguf_id,
                     int64_t rows, int64_t cols)
    : blocks_(blocks), keep_(std::move(keep)), gguf_id_(gguf_id), rows_(rows), cols_(cols) {
  KT_CHECK(rows > 0 && cols > 0 && blocks.size() % static_cast<size_t>(rows) == 0 &&
               quant::value_count(gguf_id, blocks.size() / rows) == static_cast<size_t>(cols),
           "embedding: ", blocks.size(), " bytes are no ", rows, " x ", cols);
  row_bytes_ = blocks.size() / static_cast<size_t>(rows);
}

void Embedding::lookup(int32_t token, float* out) const {
  KT_CHECK(token >= 0 && token < rows_, "token id ", token, " is outside the vocabulary of ", rows_);
  quant::dequantize(gguf_id_, blocks_.subspan(token * row_bytes_, row_bytes_),
                    {out, static_cast<size_t>(cols_)});
}

AttentionNode::AttentionNode(std::string name, std::shared_ptr<const cpu::RmsNorm> norm,
                             std::shared_ptr<const cpu::Attention> attention, int layer)
    : Node(std::move(name)), norm_(std::move(norm)), attention_(std::move(attention)), layer_(layer) {
  KT_CHECK(static_cast<int64_t>(norm_->weight.size()) == attention_->hidden_size(), this->name(),
           ": norm of ", norm_->weight.size(), " values, hidden size ", attention_->hidden_size());
}

void AttentionNode::run(StepState& state) const {
  cpu::Arena::Scope scope(state.context.arena);
  const int64_t n = attention_->hidden_size();
  float* normed = state.context.arena.take<float>(state.m * n);
  float* out = state.context.arena.take<float>(state.m * n);
  normalise(state.context, *norm_, state.hidden, state.m, n, normed);
  const KvOptions& kv = state.kv->options();
  const cpu::PhaseScope phase(state.context.phases, cpu::Phase::kDense);
  attention_->forward(state.context,
                      {state.m, state.step.position.data(), state.rounding, state.pages[layer_],
                       state.step.sequence.data(), kv.k_type, kv.v_type, state.kind},
                      normed, out);
  add_rows(state.context, out, state.m, n, state.hidden);
}

FeedForwardNode::FeedForwardNode(std::string name, std::shared_ptr<const cpu::RmsNorm> norm,
                                 std::shared_ptr<const cpu::FeedForward> ffn)
    : Node(std::move(name)), norm_(std::move(norm)), ffn_(std::move(ffn)) {
  KT_CHECK(static_cast<int64_t>(norm_->weight.size()) == ffn_->hidden_size(), this->name(),
           ": norm of ", norm_->weight.size(), " values, hidden size ", ffn_->hidden_size());
}

void FeedForwardNode::run(StepState& state) const {
  cpu::Arena::Scope scope(state.context.arena);
  const int64_t n = ffn_->hidden_size();
  float* normed = state.context.arena.take<float>(state.m * n);
  float* out = state.context.arena.take<float>(state.m * n);
  normalise(state.context, *norm_, state.hidden, state.m, n, normed);
  const cpu::PhaseScope phase(state.context.phases, cpu::Phase::kDense);
  ffn_->forward(state.context, normed, state.m, state.rounding, out);
  add_rows(state.context, out, state.m, n, state.hidden);
}

Decoder::Decoder(std::shared_ptr<cpu::Context> context, std::shared_ptr<const Embedding> embedding,
                 std::vector<std::shared_ptr<const Node>> nodes,
                 std::shared_ptr<const cpu::RmsNorm> norm,
                 std::shared_ptr<const cpu::Linear> lm_head, std::shared_ptr<KvPool> kv,
                 Arithmetic arithmetic)
    : context_(std::move(context)),
      embedding_(std::move(embedding)),
      nodes_(std::move(nodes)),
      norm_(std::move(norm)),
      lm_head_(std::move(lm_head)),
      kv_(std::move(kv)),
      arithmetic_(arithmetic) {
  const bool has_head = !nodes_.empty() && nodes_.back()->vocab_size() > 0;
  KT_CHECK(has_head != (lm_head_ != nullptr), "a program with ", has_head ? "two heads" : "no head");
  KT_CHECK(!lm_head_ || lm_head_->cols() == hidden_size(), lm_head_->weight().name(), ": ",
           lm_head_->cols(), " columns, hidden size ", hidden_size());
  // The pool outlives this where sequences do.
  for (const std::weak_ptr<const Node> node : nodes_)
    kv_->on_copy([node](int32_t from, int32_t to) {
      if (const auto held = node.lock()) held->copy_page(from, to);
    });
  KT_CHECK(static_cast<int64_t>(norm_->weight.size()) == hidden_size(), "final norm of ",
           norm_->weight.size(), " values, hidden size ", hidden_size());
}

void Decoder::check(const Step& step) const {
  const size_t m = step.token.size();
  KT_CHECK(m > 0, "step: no rows");
  KT_CHECK(step.position.size() == m && step.sequence.size() == m && step.is_prompt.size() == m,
           "step: ", m, " tokens, ", step.position.size(), " positions, ", step.sequence.size(),
           " sequences, ", step.is_prompt.size(), " prompt marks");
  cpu::Arena::Scope scope(context_->arena);
  const size_t count = step.sequences.size();
  auto* next = context_->arena.take<int64_t>(count);
  for (size_t s = 0; s < count; ++s) {
    const auto& sequence = step.sequences[s];
    KT_CHECK(sequence, "step: sequence ", s, " is none");
    KT_CHECK(&sequence->pool() == kv_.get(), "step: a sequence of another model's cache");
    for (size_t other = 0; other < s; ++other)
      KT_CHECK(step.sequences[other] != sequence, "step: sequences ", other, " and ", s,
               " are the same one");
    next[s] = sequence->length();
  }
  for (size_t row = 0; row < m; ++row) {
    const int32_t s = step.sequence[row];
    KT_CHECK(s >= 0 && static_cast<size_t>(s) < count, "step: row ", row, " names sequence ", s,
             " of ", count);
    KT_CHECK(step.position[row] == next[s], "step: row ", row, " is position ", step.position[row],
             " of a sequence that goes on at ", next[s]);
    ++next[s];
    KT_CHECK(step.token[row] >= 0 && step.token[row] < embedding_->rows(), "token id ",
             step.token[row], " is outside the vocabulary of ", embedding_->rows());
  }
  for (const int32_t row : step.logits_rows)
    KT_CHECK(row >= 0 && static_cast<size_t>(row) < m, "step: logits of row ", row, " of ", m);
  KT_CHECK(step.sampling.empty() ||
               (can_sample() && step.sampling.size() == step.logits_rows.size()),
           "step: ", step.sampling.size(), " tokens of ", step.logits_rows.size(), " rows",
           can_sample() ? "" : ", from a head that gives logits only");
}

void Decoder::step(const Step& step, StepOut& out) {
  check(step);
  cpu::Arena::Scope scope(context_->arena);
  const size_t count = step.sequences.size();
  auto* before = context_->arena.take<int64_t>(count);
  auto* ends = context_->arena.take<int64_t>(count);
  for (size_t s = 0; s < count; ++s) ends[s] = before[s] = step.sequences[s]->length();
  for (const int32_t s : step.sequence) ++ends[s];
  const Tuned tuned(*context_, static_cast<int>(step.token.size()));
  const Timed timed(*context_, times_.get());
  try {
    for (size_t s = 0; s < count; ++s) step.sequences[s]->extend(ends[s]);
    run(step, out);
  } catch (...) {
    for (size_t s = 0; s < count; ++s) step.sequences[s]->truncate(before[s]);
    throw;
  }
}

// Node after node, each of which knows what the next one reads first.
void Decoder::run_nodes(StepState& state) const {
  struct Forgotten {
    cpu::Context& context;
    ~Forgotten() { context.next = {}; }
  } const forgotten{*context_};
  const cpu::Matrix* const head[] = {lm_head_ ? &lm_head_->weight() : nullptr};
  for (size_t i = 0; i < nodes_.size(); ++i) {
    if (i + 1 < nodes_.size())
      context_->next = nodes_[i + 1]->first_weights();
    else
      context_->next = {head, lm_head_ ? size_t{1} : size_t{0}};
    nodes_[i]->run(state);
  }
}

void Decoder::run(const Step& step, StepOut& out) {
  cpu::Arena& arena = context_->arena;
  cpu::Arena::Scope scope(arena);
  const int m = static_cast<int>(step.token.size());
  const int64_t n = hidden_size();

  cpu::Rounding* rounding = arena.take<cpu::Rounding>(m);
  cpu::RowKind* kind = arena.take<cpu::RowKind>(m);
  for (int row = 0; row < m; ++row) {
    rounding[row] = rounding_of(arithmetic_, step.position[row], step.is_prompt[row] != 0);
    // The other arithmetics promise a row's last bits whatever of its prompt was cached.
    const uint8_t most = arithmetic_ == Arithmetic::kAuto ? 2 : 1;
    kind[row] = static_cast<cpu::RowKind>(std::min(step.is_prompt[row], most));
  }

  // Page addresses: per layer and sequence one list, shared by the sequence's rows.
  const int layers = kv_->num_layers();
  const auto** pages = arena.take<const cpu::KvPages*>(layers);
  for (int layer = 0; layer < layers; ++layer) {
    auto* rows = arena.take<cpu::KvPages>(m);
    auto* lists = arena.take<cpu::KvPages>(step.sequences.size());
    for (size_t s = 0; s < step.sequences.size(); ++s) {
      const auto numbers = step.sequences[s]->pages();
      uint8_t** k = arena.take<uint8_t*>(numbers.size());
      uint8_t** v = arena.take<uint8_t*>(numbers.size());
      for (size_t i = 0; i < numbers.size(); ++i) {
        k[i] = kv_->keys(layer, numbers[i]);
        v[i] = kv_->values(layer, numbers[i]);
      }
      lists[s] = {k, v};
    }
    for (int row = 0; row < m; ++row) rows[row] = lists[step.sequence[row]];
    pages[layer] = rows;
  }

  float* hidden = arena.take<float>(m * n);
  for (int row = 0; row < m; ++row) embedding_->lookup(step.token[row], hidden + row * n);
  StepState state{*context_, step, rounding, kind, kv_.get(), pages, m, hidden, &out.logits,
                  &out.tokens};
  out.tokens.assign(step.sampling.size(), -1);
  run_nodes(state);
  tokens_sampled_ += static_cast<int64_t>(out.tokens.size());

  const int wanted = static_cast<int>(step.logits_rows.size());
  out.hidden.clear();
  if (step.want_hidden) {
    out.hidden.resize(static_cast<size_t>(m) * n);
    normalise(*context_, *norm_, hidden, m, n, out.hidden.data());
  }
  if (!lm_head_) return;
  out.logits.resize(static_cast<size_t>(wanted) * vocab_size());
  if (wanted == 0) return;
  const cpu::PhaseScope phase(context_->phases, cpu::Phase::kHead);
  float* last = arena.take<float>(wanted * n);
  cpu::Rounding* exact = arena.take<cpu::Rounding>(wanted);
  for (int i = 0; i < wanted; ++i) {
    std::copy_n(hidden + step.logits_rows[i] * n, n, last + i * n);
    // lm_head is near exact for every row: it is read once per step, and it decides.
    exact[i] = arithmetic_ == Arithmetic::kF32 ? cpu::Rounding::kFloat : cpu::Rounding::kExact;
  }
  normalise(*context_, *norm_, last, wanted, n, last);
  const cpu::Activations input(*context_, last, n, wanted, n, exact);
  const cpu::LinearCall call[] = {{lm_head_.get(), &input, out.logits.data(), vocab_size()}};
  cpu::run_linears(*context_, call);
}

}  // namespace kt::program
