// Choosing the next token from logits, and the loop that generates.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <span>
#include <unordered_map>
#include <vector>

#include "program/decoder.h"

namespace kt::program {

/// The order of work is that of transformers: penalties, temperature, top-k, top-p, min-p.
struct SamplingOptions {
  bool greedy = true;
  float temperature = 1.0f;
  int top_k = 0;        // 0: off
  float top_p = 1.0f;   // 1: off
  float min_p = 0.0f;   // 0: off
  float repetition_penalty = 1.0f;  // divides positive, multiplies negative logits of seen tokens
  float presence_penalty = 0.0f;    // subtracted once from generated tokens
  float frequency_penalty = 0.0f;   // subtracted per occurrence
  uint64_t seed = 0;
};

class Sampler {
 public:
  /// Throws InvalidArgument for values out of range, naming them.
  explicit Sampler(const SamplingOptions& options);
  /// Tokens the repetition penalty counts as seen (the prompt).
  void saw(std::span<const int32_t> tokens);
  /// Chooses a token and remembers it. `logits` is [vocab]. Throws InvalidArgument if all are NaN.
  int32_t sample(std::span<const float> logits);

 private:
  int32_t draw(std::span<const float> logits, float top);

  SamplingOptions options_;
  std::mt19937_64 random_;
  std::unordered_map<int32_t, int> generated_;
  std::unordered_map<int32_t, int> seen_;
};

struct GenerateOptions {
  SamplingOptions sampling;
  int max_new_tokens = 256;
  int min_new_tokens = 0;           // stop ids are not chosen before
  std::vector<int32_t> stop_ids;
  int prompt_chunk = 512;           // rows of a prompt evaluated at a time
};

struct GenerateResult {
  std::vector<std::vector<int32_t>> tokens;  // per sequence, stop id included where one ended it
  int64_t prompt_tokens = 0, eval_tokens = 0;
  double prompt_seconds = 0, eval_seconds = 0;
};

/// Evaluates each prompt (at the end of its sequence) and generates until every sequence stops.
/// `on_tokens(sequence, token)` may be empty; returning false ends the generation. After it a
/// sequence holds all but its last token.
GenerateResult generate(Decoder& decoder, std::span<const std::shared_ptr<Sequence>> sequences,
                        std::span<const std::vector<int32_t>> prompts,
                        const GenerateOptions& options,
                        const std::function<bool(int, int32_t)>& on_token);

}  // namespace kt::program
