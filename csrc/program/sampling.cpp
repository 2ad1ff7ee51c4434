#include "program/sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "base/error.h"
#include "base/os.h"
#include "cpu/isa.h"

namespace kt::program {

Sampler::Sampler(const SamplingOptions& o)
    : options_(o), random_(o.seed), kernels_(cpu::kernels()) {
  KT_CHECK(std::isfinite(o.temperature) && o.temperature >= 0, "temperature=", o.temperature,
           " must be 0 or more");
  KT_CHECK(o.top_k >= 0, "top_k=", o.top_k, " must be 0 (off) or more");
  KT_CHECK(o.top_p > 0 && o.top_p <= 1, "top_p=", o.top_p, " must be in (0, 1]");
  KT_CHECK(o.min_p >= 0 && o.min_p <= 1, "min_p=", o.min_p, " must be in [0, 1]");
  KT_CHECK(std::isfinite(o.repetition_penalty) && o.repetition_penalty > 0, "repetition_penalty=",
           o.repetition_penalty, " must be positive");
  KT_CHECK(std::isfinite(o.presence_penalty) && std::isfinite(o.frequency_penalty),
           "presence_penalty=", o.presence_penalty, ", frequency_penalty=", o.frequency_penalty,
           " must be finite");
  if (o.temperature == 0) options_.greedy = true;
  has_penalties_ = o.repetition_penalty != 1.0f || o.presence_penalty != 0.0f ||
                   o.frequency_penalty != 0.0f;
}

void Sampler::count(int32_t token, bool is_generated) {
  if (token < 0) return;
  const auto needed = static_cast<size_t>(token) + 1;
  if (seen_.size() < needed) seen_.resize(std::max(needed, 2 * seen_.size()), 0);
  if (generated_.size() < seen_.size()) generated_.resize(seen_.size(), 0);
  if (seen_[token]++ == 0) known_.push_back(token);
  if (is_generated) ++generated_[token];
}

void Sampler::saw(std::span<const int32_t> tokens) {
  if (!has_penalties_) return;
  for (const int32_t token : tokens) count(token, false);
}

std::span<const float> Sampler::penalised(std::span<const float> logits) {
  const auto vocab = static_cast<int32_t>(logits.size());
  changed_.assign(logits.begin(), logits.end());
  known_.reserve(logits.size());
  for (const int32_t token : known_) {
    if (token >= vocab) continue;
    float& logit = changed_[token];
    logit = logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
    if (const int32_t times = generated_[token]; times > 0)
      logit -= options_.presence_penalty + options_.frequency_penalty * static_cast<float>(times);
  }
  return changed_;
}

void check_token(int32_t token) {
  KT_CHECK(token >= 0, "every logit is NaN: the model's weights or cache are damaged");
}

int32_t Sampler::sample(std::span<const float> logits) {
  KT_CHECK(!logits.empty(), "sample: no logits");
  const size_t vocab = logits.size();
  if (has_penalties_) {
    if (seen_.size() < vocab) seen_.resize(vocab, 0), generated_.resize(vocab, 0);
    logits = penalised(logits);
  }
  block_top_.resize((vocab + cpu::kScanBlock - 1) / cpu::kScanBlock);
  kernels_.block_max(logits.data(), static_cast<int64_t>(vocab), block_top_.data());
  const auto best = std::max_element(block_top_.begin(), block_top_.end());
  const float top = *best;
  // The first of equals, in the first block that has one.
  auto chosen = static_cast<size_t>(best - block_top_.begin()) * cpu::kScanBlock;
  while (chosen < vocab && logits[chosen] != top) ++chosen;
  auto token = chosen < vocab ? static_cast<int32_t>(chosen) : -1;
  check_token(token);
  if (!options_.greedy) token = draw(logits, top);
  if (has_penalties_) count(token, true);
  return token;
}

std::optional<kt_cuda_sampling> Sampler::for_card() const {
  if (has_penalties_) return std::nullopt;
  kt_cuda_sampling how{};
  how.greedy = options_.greedy;
  if (options_.greedy) return how;
  // uniform() is the generator's one number divided by 2^64, as the card does it.
  std::mt19937_64 next = random_;
  how.random = next();
  how.temperature = options_.temperature, how.top_k = options_.top_k;
  how.top_p = options_.top_p, how.min_p = options_.min_p;
  return how;
}

void Sampler::chose() {
  if (!options_.greedy) random_.discard(1);
}

// Every logit that is at least `threshold`, in order of tokens.
void Sampler::gather(std::span<const float> logits, float threshold) {
  candidates_.clear();
  for (size_t b = 0; b < block_top_.size(); ++b) {
    if (!(block_top_[b] >= threshold)) continue;
    const size_t end = std::min(logits.size(), (b + 1) * cpu::kScanBlock);
    for (size_t i = b * cpu::kScanBlock; i < end; ++i)
      if (logits[i] >= threshold) candidates_.push_back({logits[i], static_cast<int32_t>(i)});
  }
}

// A value that at least `count` logits reach: that many blocks have one.
float Sampler::threshold_of(size_t count) {
  if (count > block_top_.size()) return -INFINITY;
  scratch_.assign(block_top_.begin(), block_top_.end());
  std::nth_element(scratch_.begin(), scratch_.begin() + (count - 1), scratch_.end(),
                   std::greater<>());
  return scratch_[count - 1];
}

// The best `count` candidates in order, of equals the lower token first; the others are dropped.
void Sampler::sort_candidates(size_t count) {
  count = std::min(count, candidates_.size());
  std::partial_sort(candidates_.begin(), candidates_.begin() + count, candidates_.end(),
                    [](const Candidate& a, const Candidate& b) {
                      return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
                    });
  candidates_.resize(count);
}

// The best candidates in order, as many as top_p can want: more are taken until they suffice.
// Returns the sum over all logits of their weights e^((logit - top) / temperature).
double Sampler::gather_likely(std::span<const float> logits, float top) {
  scratch_.resize(block_top_.size());
  kernels_.block_exp_sum(logits.data(), static_cast<int64_t>(logits.size()), top,
                         1.0f / options_.temperature, scratch_.data());
  double total = std::accumulate(scratch_.begin(), scratch_.end(), 0.0);
  for (size_t want = 64;; want *= 8) {
    const float threshold = threshold_of(want);
    gather(logits, threshold);
    double sum = 0;
    for (const Candidate& c : candidates_) sum += weight(c.logit, top);
    if (threshold == -INFINITY) total = sum;
    if (threshold == -INFINITY || sum >= options_.top_p * total) break;
  }
  sort_candidates(candidates_.size());
  return total;
}

// By block sums first, then within the block: no list of candidates is made.
int32_t Sampler::draw_from_all(std::span<const float> logits, float top) {
  scratch_.resize(block_top_.size());
  kernels_.block_exp_sum(logits.data(), static_cast<int64_t>(logits.size()), top,
                         1.0f / options_.temperature, scratch_.data());
  double at = uniform(std::accumulate(scratch_.begin(), scratch_.end(), 0.0));
  size_t block = 0;
  while (block + 1 < scratch_.size() && at >= scratch_[block]) at -= scratch_[block++];
  const size_t end = std::min(logits.size(), (block + 1) * cpu::kScanBlock);
  int32_t chosen = -1;  // the last one possible, where rounding leaves a remainder
  for (size_t i = block * cpu::kScanBlock; i < end; ++i) {
    const double p = std::isnan(logits[i]) ? 0.0 : weight(logits[i], top);
    if (p == 0.0) continue;
    chosen = static_cast<int32_t>(i);
    if (at < p) break;
    at -= p;
  }
  if (chosen >= 0) return chosen;
  // A block whose weights all vanish was met at the very end: take the best instead.
  return static_cast<int32_t>(std::find(logits.begin(), logits.end(), top) - logits.begin());
}

int32_t Sampler::draw(std::span<const float> logits, float top) {
  candidates_.reserve(logits.size());
  p_.reserve(logits.size());
  scratch_.reserve(block_top_.size());
  double total = -1;  // of all that top_p looks at; below 0: the candidates are all
  if (std::isinf(top)) {  // infinities have no difference: equal ones alone can be chosen
    gather(logits, top);
    if (options_.top_k > 0) sort_candidates(options_.top_k);
  } else if (options_.top_k > 0) {
    gather(logits, threshold_of(options_.top_k));
    sort_candidates(options_.top_k);
  } else if (options_.top_p < 1.0f) {
    total = gather_likely(logits, top);
  } else if (options_.min_p > 0.0f) {
    // A little below the bound, which is applied exactly further down.
    gather(logits, top + options_.temperature * (std::log(options_.min_p) - 1e-3f) -
                       1e-5f * std::fabs(top));
  } else {
    return draw_from_all(logits, top);
  }

  p_.clear();
  for (const Candidate& c : candidates_) p_.push_back(weight(c.logit, top));
  if (total < 0) total = std::accumulate(p_.begin(), p_.end(), 0.0);
  if (options_.top_p < 1.0f) {
    double sum = 0;
    size_t keep = 0;
    while (keep < p_.size() && sum < options_.top_p * total) sum += p_[keep++];
    p_.resize(std::max<size_t>(keep, 1));
  }
  for (double& p : p_) p = p >= options_.min_p ? p : 0.0;
  double at = uniform(std::accumulate(p_.begin(), p_.end(), 0.0));
  size_t chosen = 0;  // the last one possible, where rounding leaves a remainder
  for (size_t i = 0; i < p_.size(); ++i) {
    if (p_[i] == 0.0) continue;
    chosen = i;
    if (at < p_[i]) break;
    at -= p_[i];
  }
  return candidates_[chosen].token;
}

// Relative to the best one's; an infinite top is equal to itself and infinitely above the rest.
double Sampler::weight(float logit, float top) const {
  return logit == top ? 1.0 : std::exp((double{logit} - top) / options_.temperature);
}

namespace {

// Evaluates the prompt in chunks; what its last token gives, logits or the next one, is in `out`.
void evaluate_prompt(Decoder& decoder, const std::shared_ptr<Sequence>& sequence,
                     std::span<const int32_t> prompt, int chunk,
                     std::span<const kt_cuda_sampling> sampling, StepOut& out) {
  std::vector<int32_t> position, zero;
  std::vector<uint8_t> is_prompt;
  const cpu::RowKind kind = cpu::prompt_kind(static_cast<int64_t>(prompt.size()));
  for (size_t start = 0; start < prompt.size(); start += chunk) {
    const size_t count = std::min<size_t>(chunk, prompt.size() - start);
    position.resize(count);
    std::iota(position.begin(), position.end(), static_cast<int32_t>(sequence->length()));
    zero.assign(count, 0);
    is_prompt.assign(count, static_cast<uint8_t>(kind));
    const bool last = start + count == prompt.size();
    const int32_t row = static_cast<int32_t>(count) - 1;
    Step step;
    step.token = prompt.subspan(start, count);
    step.position = position;
    step.sequence = zero;
    step.is_prompt = is_prompt;
    step.sequences = {&sequence, 1};
    if (last) step.logits_rows = {&row, 1}, step.sampling = sampling;
    decoder.step(step, out);
  }
}

}  // namespace

GenerateResult generate(Decoder& decoder, std::span<const std::shared_ptr<Sequence>> sequences,
                        std::span<const std::vector<int32_t>> prompts,
                        const GenerateOptions& options,
                        const std::function<bool(int, int32_t)>& on_token) {
  KT_CHECK(sequences.size() == prompts.size(), "generate: ", sequences.size(), " sequences, ",
           prompts.size(), " prompts");
  KT_CHECK(options.max_new_tokens >= 0 && options.prompt_chunk > 0, "generate: max_new_tokens=",
           options.max_new_tokens, ", prompt_chunk=", options.prompt_chunk, " are out of range");
  for (const auto& sequence : sequences) KT_CHECK(sequence, "generate: a sequence is none");
  const int count = static_cast<int>(sequences.size());
  const auto vocab = static_cast<size_t>(decoder.vocab_size());
  GenerateResult result;
  result.tokens.resize(count);
  if (options.max_new_tokens == 0) return result;
  std::vector<Sampler> samplers;
  std::vector<int32_t> current(count, -1);
  std::vector<int> active;
  for (auto& tokens : result.tokens) tokens.reserve(std::min(options.max_new_tokens, 1 << 16));
  StepOut out;
  bool goes_on = true;

  const auto may_stop = [&](int s) {
    return options.stop_ids.empty() || static_cast<int>(result.tokens[s].size()) >= options.min_new_tokens;
  };
  // How the card that has the logits chooses for these sequences; nothing where it cannot.
  const auto on_card = [&](std::span<const int> chosen, std::vector<kt_cuda_sampling>& how) {
    how.clear();
    for (const int s : chosen) {
      const auto one = decoder.can_sample() && may_stop(s) ? samplers[s].for_card() : std::nullopt;
      if (!one) return how.clear();
      how.push_back(*one);
    }
  };
  std::vector<kt_cuda_sampling> how;

  const auto choose = [&](int s, size_t row) {
    if (decoder.times()) decoder.times()->start();
    const cpu::PhaseScope phase(decoder.times(), cpu::Phase::kSampling);
    if (!how.empty()) {
      current[s] = out.tokens[row];
      check_token(current[s]);
      samplers[s].chose();
    } else {
      const std::span<float> logits{out.logits.data() + row * vocab, vocab};
      for (const int32_t id : options.stop_ids)
        if (!may_stop(s) && id >= 0 && static_cast<size_t>(id) < vocab) logits[id] = -INFINITY;
      current[s] = samplers[s].sample(logits);
    }
    result.tokens[s].push_back(current[s]);
    if (on_token && !on_token(s, current[s])) goes_on = false;
    const bool stop = std::find(options.stop_ids.begin(), options.stop_ids.end(), current[s]) !=
                      options.stop_ids.end();
    return !stop && static_cast<int>(result.tokens[s].size()) < options.max_new_tokens;
  };

  double begin = os::seconds();
  for (int s = 0; s < count; ++s) {
    KT_CHECK(!prompts[s].empty(), "generate: prompt ", s, " is empty");
    SamplingOptions sampling = options.sampling;
    sampling.seed += static_cast<uint64_t>(s);
    samplers.emplace_back(sampling).saw(prompts[s]);
    on_card({&s, 1}, how);
    evaluate_prompt(decoder, sequences[s], prompts[s], options.prompt_chunk, how, out);
    result.prompt_tokens += static_cast<int64_t>(prompts[s].size());
    if (choose(s, 0)) active.push_back(s);
    if (!goes_on) break;
  }
  result.prompt_seconds = os::seconds() - begin;

  begin = os::seconds();
  std::vector<int32_t> token, position, rows;
  std::vector<uint8_t> generated;
  std::vector<std::shared_ptr<Sequence>> chosen;
  while (goes_on && !active.empty()) {
    token.clear(), position.clear(), chosen.clear();
    for (const int s : active) {
      token.push_back(current[s]);
      position.push_back(static_cast<int32_t>(sequences[s]->length()));
      chosen.push_back(sequences[s]);
    }
    rows.resize(active.size());
    std::iota(rows.begin(), rows.end(), 0);
    generated.assign(active.size(), 0);
    on_card(active, how);
    decoder.step({token, position, rows, generated, chosen, rows, false, how}, out);
    result.eval_tokens += static_cast<int64_t>(active.size());
    size_t still = 0;
    for (size_t i = 0; i < active.size() && goes_on; ++i) {
      if (choose(active[i], i)) active[still++] = active[i];
    }
    active.resize(still);
  }
  result.eval_seconds = os::seconds() - begin;
  return result;
}

}  // namespace kt::program
