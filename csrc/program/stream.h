// Generations under way, and one step for any number of them.
//
// A Stream is a sequence, the tokens it consists of so far and a sampler. What of its tokens is not
// evaluated yet is pending: the whole prompt at first, then the one token chosen last.
// run_streams() evaluates some pending rows of each stream in one Decoder::step and chooses the
// next token of those whose last row was among them. Who takes part, and with how many rows, is the
// caller's policy; what comes out does not depend on it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "program/decoder.h"
#include "program/sampling.h"

namespace kt::program {

struct StreamOptions {
  SamplingOptions sampling;
  std::vector<int32_t> stop_ids;  // not chosen before min_new_tokens
  int min_new_tokens = 0;
  int top_logprobs = -1;  // alternatives told with each generated token; -1: no log-probabilities
  int prompt_logprobs = -1;                           // the same for the tokens of the prompt
  std::vector<std::pair<int32_t, float>> logit_bias;  // added before anything else
};

/// A token and the natural logarithm of its probability by the model, before bias, mask, penalties
/// and temperature; top: the likeliest tokens there, best first.
struct TokenLogprob {
  int32_t token = -1;
  float logprob = 0.0f;
  std::vector<std::pair<int32_t, float>> top;
};

class Stream {
 public:
  /// Throws InvalidArgument for an empty prompt, a sequence longer than the prompt, or sampling
  /// options out of range. `sequence` holds what is known of the prompt's beginning.
  Stream(std::shared_ptr<Sequence> sequence, std::vector<int32_t> prompt,
         const StreamOptions& options);

  const std::vector<int32_t>& tokens() const { return tokens_; }
  int64_t prompt_length() const { return prompt_; }
  const StreamOptions& options() const { return options_; }
  int64_t pending() const { return static_cast<int64_t>(tokens_.size()) - sequence_->length(); }
  const std::shared_ptr<Sequence>& sequence() const { return sequence_; }

  /// Goes on with another sequence, which holds some beginning of tokens().
  void set_sequence(std::shared_ptr<Sequence> sequence);
  /// Allows only tokens whose bit is set, for the next choice. words: [ceil(vocab / 32)].
  void set_mask(std::span<const int32_t> words) { mask_.assign(words.begin(), words.end()); }

 private:
  friend struct StreamStep;
  TokenLogprob choose(std::span<float> logits);
  /// How a card chooses the next token; none where that takes the logits.
  std::optional<kt_cuda_sampling> for_card() const;
  TokenLogprob take(int32_t token_of_card);

  std::shared_ptr<Sequence> sequence_;
  std::vector<int32_t> tokens_;
  int64_t prompt_;
  // By what was left of the prompt when its sequence was set.
  cpu::RowKind prompt_kind_ = cpu::RowKind::kPrompt;
  StreamOptions options_;
  Sampler sampler_;
  std::vector<int32_t> mask_;
};

struct Share {
  std::shared_ptr<Stream> stream;
  int rows = 1;
};

/// What a step brought one stream.
struct Outcome {
  bool chosen = false;  // a token was chosen and appended
  TokenLogprob token;
  std::vector<TokenLogprob> prompt;  // where asked for: of the prompt tokens after each row
  std::string error;                 // why no token could be chosen
};

/// One step of all shares: min(rows, pending()) rows each -> outcomes in the same order. Throws
/// what Decoder::step throws, leaving all streams as they were.
std::vector<Outcome> run_streams(Decoder& decoder, std::span<const Share> shares);

/// log softmax of one row at `token`, with the `count` likeliest tokens.
TokenLogprob logprob_of(std::span<const float> logits, int32_t token, int count);

}  // namespace kt::program
