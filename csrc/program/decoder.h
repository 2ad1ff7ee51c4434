// The decoder program: a list of nodes over a residual stream, and the one way to run it.
//
// Decoder::step takes any mix of prompt chunks and decodes of any sequences. Everything that
// evaluates a model (chat, HF forward, server, perplexity) calls it and nothing else.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cpu/ops/attention.h"
#include "cpu/ops/context.h"
#include "cpu/ops/ffn.h"
#include "cpu/ops/linear.h"
#include "cpu/ops/phase.h"
#include "cuda/api_step.h"
#include "program/kv_pool.h"

namespace kt::program {

/// How rows are rounded (see cpu::Rounding): by default generated tokens and a sequence's first 64
/// positions near exactly and other prompt rows as digits; or all near exactly; or not at all.
enum class Arithmetic : uint8_t { kAuto, kExact, kF32 };

/// One evaluation: m rows, each a token at a position of a sequence.
struct Step {
  std::span<const int32_t> token;     // [m]
  std::span<const int32_t> position;  // [m] consecutive per sequence, from its length on
  std::span<const int32_t> sequence;  // [m] index into sequences
  std::span<const uint8_t> is_prompt;  // [m] cpu::RowKind; a long prompt's only counts in kAuto
  std::span<const std::shared_ptr<Sequence>> sequences;
  std::span<const int32_t> logits_rows;  // rows whose logits are wanted
  bool want_hidden = false;              // the rows' final hidden states, after the last norm
  /// [logits_rows], each another row: next tokens instead of logits, where Decoder::can_sample().
  std::span<const kt_cuda_sampling> sampling = {};
};

struct StepOut {
  std::vector<float> logits;  // [logits_rows, vocab]
  std::vector<float> hidden;  // [m, hidden] where wanted
  std::vector<int32_t> tokens;  // [logits_rows] instead of logits; -1: every logit is NaN
};

/// Rows of the embedding matrix, kept as the file's blocks.
class Embedding {
 public:
  /// `blocks` must outlive the embedding; `keep` is whatever keeps it alive.
  Embedding(std::span<const uint8_t> blocks, std::shared_ptr<void> keep, int gguf_id, int64_t rows,
            int64_t cols);
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  /// Throws InvalidArgument for an id outside the vocabulary.
  void lookup(int32_t token, float* out) const;

 private:
  std::span<const uint8_t> blocks_;
  std::shared_ptr<void> keep_;
  int gguf_id_;
  int64_t rows_, cols_;
  size_t row_bytes_;
};

/// What a node sees of the step under way.
struct StepState {
  cpu::Context& context;
  const Step& step;
  const cpu::Rounding* rounding;  // [m]
  const cpu::RowKind* kind;       // [m]
  KvPool* kv;
  const cpu::KvPages* const* pages;  // [layer][m]
  int m;
  float* hidden;                // [m, hidden_size], the residual stream
  std::vector<float>* logits;   // [logits_rows, vocab], for the node that has the head
  std::vector<int32_t>* tokens;  // [logits_rows], for it too
};

/// One instruction of the program.
class Node {
 public:
  explicit Node(std::string name) : name_(std::move(name)) {}
  virtual ~Node() = default;
  virtual void run(StepState& state) const = 0;
  virtual const char* kind() const = 0;
  virtual const char* device() const { return "cpu"; }
  /// The matrices it multiplies first, together, where they are the CPU's.
  virtual std::span<const cpu::Matrix* const> first_weights() const { return {}; }
  /// Of a node that gives the step's logits itself; 0: the decoder does.
  virtual int64_t vocab_size() const { return 0; }
  /// Whether it chooses tokens from them.
  virtual bool can_sample() const { return false; }
  /// Gives a page's content to another, where the node keeps a cache of its own.
  virtual void copy_page(int32_t /*from*/, int32_t /*to*/) const {}
  const std::string& name() const { return name_; }

 private:
  std::string name_;
};

/// hidden += attention(norm(hidden)); the layer's pages are those of `layer`.
class AttentionNode : public Node {
 public:
  AttentionNode(std::string name, std::shared_ptr<const cpu::RmsNorm> norm,
                std::shared_ptr<const cpu::Attention> attention, int layer);
  void run(StepState& state) const override;
  const char* kind() const override { return "attention"; }
  std::span<const cpu::Matrix* const> first_weights() const override {
    return attention_->first_weights();
  }

 private:
  std::shared_ptr<const cpu::RmsNorm> norm_;
  std::shared_ptr<const cpu::Attention> attention_;
  int layer_;
};

/// hidden += ffn(norm(hidden)).
class FeedForwardNode : public Node {
 public:
  FeedForwardNode(std::string name, std::shared_ptr<const cpu::RmsNorm> norm,
                  std::shared_ptr<const cpu::FeedForward> ffn);
  void run(StepState& state) const override;
  const char* kind() const override { return "feed_forward"; }
  std::span<const cpu::Matrix* const> first_weights() const override {
    return ffn_->first_weights();
  }

 private:
  std::shared_ptr<const cpu::RmsNorm> norm_;
  std::shared_ptr<const cpu::FeedForward> ffn_;
};

/// A whole layer run outside the core (a module without a core handle); the callback maps
/// hidden [m, hidden_size] in place.
class CallbackNode : public Node {
 public:
  using Callback = std::function<void(const Step& step, float* hidden)>;
  CallbackNode(std::string name, Callback callback)
      : Node(std::move(name)), callback_(std::move(callback)) {}
  void run(StepState& state) const override { callback_(state.step, state.hidden); }
  const char* kind() const override { return "callback"; }
  const char* device() const override { return "host"; }

 private:
  Callback callback_;
};

class Decoder {
 public:
  /// lm_head: null where the last node has the head. Throws InvalidArgument where sizes differ.
  Decoder(std::shared_ptr<cpu::Context> context, std::shared_ptr<const Embedding> embedding,
          std::vector<std::shared_ptr<const Node>> nodes, std::shared_ptr<const cpu::RmsNorm> norm,
          std::shared_ptr<const cpu::Linear> lm_head, std::shared_ptr<KvPool> kv,
          Arithmetic arithmetic);

  /// Evaluates the step and appends its positions to their sequences. On an error the sequences
  /// keep the length they had. Throws InvalidArgument for tokens, positions or sequences that do
  /// not fit, and where the cache is full.
  void step(const Step& step, StepOut& out);

  /// From now on, adds up where the time of steps goes (from zero), or stops doing so.
  void set_timing(bool on) { times_ = on ? std::make_unique<cpu::PhaseTimes>() : nullptr; }
  /// Null where timing is off.
  cpu::PhaseTimes* times() const { return times_.get(); }

  int64_t vocab_size() const { return lm_head_ ? lm_head_->rows() : nodes_.back()->vocab_size(); }
  /// Whether steps can give tokens instead of logits.
  bool can_sample() const { return !nodes_.empty() && nodes_.back()->can_sample(); }
  /// Tokens that steps gave so.
  int64_t tokens_sampled() const { return tokens_sampled_; }
  int64_t hidden_size() const { return embedding_->cols(); }
  Arithmetic arithmetic() const { return arithmetic_; }
  KvPool& kv() const { return *kv_; }
  std::shared_ptr<KvPool> kv_pointer() const { return kv_; }
  cpu::Context& context() const { return *context_; }
  std::span<const std::shared_ptr<const Node>> nodes() const { return nodes_; }

 private:
  void check(const Step& step) const;
  void run(const Step& step, StepOut& out);
  void run_nodes(StepState& state) const;

  std::shared_ptr<cpu::Context> context_;
  std::shared_ptr<const Embedding> embedding_;
  std::vector<std::shared_ptr<const Node>> nodes_;
  std::shared_ptr<const cpu::RmsNorm> norm_;
  std::shared_ptr<const cpu::Linear> lm_head_;
  std::shared_ptr<KvPool> kv_;
  Arithmetic arithmetic_;
  int64_t tokens_sampled_ = 0;
  std::unique_ptr<cpu::PhaseTimes> times_;
};

/// The rounding of one row under an arithmetic.
cpu::Rounding rounding_of(Arithmetic arithmetic, int32_t position, bool is_prompt);

}  // namespace kt::program
