// Choosing the next token from logits, and the loop that generates.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <span>
#include <vector>

#include "cuda/api_step.h"
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

/// Chooses tokens of one sequence. Buffers are made by the first call: a later one of the same
/// vocabulary allocates nothing.
class Sampler {
 public:
  /// Throws InvalidArgument for values out of range, naming them.
  explicit Sampler(const SamplingOptions& options);
  /// Tokens the repetition penalty counts as seen (the prompt).
  void saw(std::span<const int32_t> tokens);
  /// Chooses a token and remembers it. `logits` is [vocab]. Throws InvalidArgument if all are NaN.
  int32_t sample(std::span<const float> logits);
  /// How a card, which has the logits, chooses the token that sample() would; none where penalties
  /// change them. The next random number is used up by chose() only.
  std::optional<kt_cuda_sampling> for_card() const;
  void chose();

 private:
  struct Candidate {
    float logit;
    int32_t token;
  };

  std::span<const float> penalised(std::span<const float> logits);
  void count(int32_t token, bool is_generated);
  int32_t draw(std::span<const float> logits, float top);
  int32_t draw_from_all(std::span<const float> logits, float top);
  void gather(std::span<const float> logits, float threshold);
  float threshold_of(size_t count);
  void sort_candidates(size_t count);
  double gather_likely(std::span<const float> logits, float top);
  double weight(float logit, float top) const;
  double uniform(double end) {
    return std::uniform_real_distribution<double>(0.0, end)(random_);
  }

  SamplingOptions options_;
  bool has_penalties_;
  std::mt19937_64 random_;
  const cpu::KernelTable& kernels_;
  std::vector<int32_t> known_;            // tokens seen, each once
  std::vector<int32_t> seen_, generated_;  // [token] how often; as long as the largest token needs
  std::vector<float> changed_;            // logits after penalties
  std::vector<float> block_top_;          // [vocab / 64] largest logit of each block
  std::vector<float> scratch_;            // [vocab / 64]
  std::vector<Candidate> candidates_;
  std::vector<double> p_;
};

/// Throws InvalidArgument for -1, which a card chooses where every logit is NaN.
void check_token(int32_t token);

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
