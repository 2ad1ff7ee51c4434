#include "program/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/os.h"

namespace kt::program {

Sampler::Sampler(const SamplingOptions& o) : options_(o), random_(o.seed) {
  KT_CHECK(std::isfinite(o.temperature) && o.temperature >= 0, "temperature=", o.temperature,
           " must be 0 or more");
  KT_CHECK(o.top_k >= 0, "top_k=", o.top_k, " must be 0 (off) or more");
  KT_CHECK(o.top_p > 0 && o.top_p <= 1, "top_p=", o.top_p, " must be in (0, 1]");
  KT_CHECK(o.min_p >= 0 && o.min_p <= 1, "min_p=", o.min_p, " must be in [0, 1]");
  KT_CHECK(std::isfinite(o.repetition_penalty) && o.repetition_penalty > 0,
           "repetition_penalty=", o.repetition_penalty, " must be positive");
  KT_CHECK(std::isfinite(o.presence_penalty) && std::isfinite(o.frequency_penalty),
           "presence_penalty=", o.presence_penalty, ", frequency_penalty=", o.frequency_penalty,
           " must be finite");
  if (o.temperature == 0) options_.greedy = true;
}

void Sampler::saw(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) ++seen_[token];
}

int32_t Sampler::sample(std::span<const float> logits) {
  const auto vocab = static_cast<int32_t>(logits.size());
  const bool penalties = options_.repetition_penalty != 1.0f || options_.presence_penalty != 0.0f ||
                         options_.frequency_penalty != 0.0f;
  std::vector<float> changed;
  if (penalties) {
    changed.assign(logits.begin(), logits.end());
    for (const auto& [token, count] : seen_) {
      if (token < 0 || token >= vocab) continue;
      float& logit = changed[token];
      logit = logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
    }
    for (const auto& [token, count] : generated_)
      if (token < vocab)
        changed[token] -= options_.presence_penalty + options_.frequency_penalty * count;
    logits = changed;
  }

  KT_CHECK(vocab > 0, "sample: no logits");
  int32_t chosen = 0;
  for (int32_t i = 1; i < vocab; ++i) {
    if (logits[i] > logits[chosen] || std::isnan(logits[chosen])) chosen = i;
  }
  KT_CHECK(!std::isnan(logits[chosen]),
           "every logit is NaN: the model's weights or cache are damaged");

  if (!options_.greedy) chosen = draw(logits, logits[chosen]);
  ++generated_[chosen];
  ++seen_[chosen];
  return chosen;
}

int32_t Sampler::draw(std::span<const float> logits, float top) {
  // Tokens less likely than 2^-60 of the best can be drawn by no number of 53 bits: leaving them
  // out at once keeps a large vocabulary from being sorted for every token. A NaN compares as
  // false.
  constexpr double kReach = 42.0;  // > 60 ln 2
  const double least = double{top} - kReach * options_.temperature;
  std::vector<int32_t> order;
  for (int32_t i = 0; i < static_cast<int32_t>(logits.size()); ++i)
    if (logits[i] >= least) order.push_back(i);
  const auto better = [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  const auto begin = order.begin();
  if (options_.top_k > 0 && static_cast<size_t>(options_.top_k) < order.size()) {
    std::nth_element(begin, begin + options_.top_k, order.end(), better);
    order.resize(options_.top_k);
  }
  const auto weight = [&](int32_t id) {  // equal ones first: infinities have no difference
    return logits[id] == top ? 1.0 : std::exp((double{logits[id]} - top) / options_.temperature);
  };
  size_t keep = order.size();
  if (options_.top_p < 1.0f) {
    double total = 0, sum = 0;
    for (const int32_t id : order) total += weight(id);
    // Sorted only as deep as the probabilities matter.
    size_t sorted = 0;
    for (keep = 0; keep < order.size() && sum < options_.top_p * total; ++keep) {
      if (keep == sorted) {
        const size_t deeper = std::min(order.size(), std::max<size_t>(64, 4 * sorted));
        std::partial_sort(begin + sorted, begin + deeper, order.end(), better);
        sorted = deeper;
      }
      sum += weight(order[keep]);
    }
    keep = std::max<size_t>(keep, 1);
  }
  std::vector<double> p;
  double sum = 0;
  size_t kept = 0;
  for (size_t i = 0; i < keep; ++i) {
    const double w = weight(order[i]);
    if (w < options_.min_p) continue;  // the best has weight 1
    order[kept++] = order[i];
    p.push_back(w);
    sum += w;
  }
  double at = std::uniform_real_distribution<double>(0.0, sum)(random_);
  size_t i = 0;
  while (i + 1 < kept && at >= p[i]) at -= p[i++];
  return order[i];
}

namespace {

// Evaluates the prompt in chunks; the logits of its last token stay in `out`.
void evaluate_prompt(Decoder& decoder, const std::shared_ptr<Sequence>& sequence,
                     std::span<const int32_t> prompt, int chunk, StepOut& out) {
  std::vector<int32_t> position, zero;
  std::vector<uint8_t> is_prompt;
  for (size_t start = 0; start < prompt.size(); start += chunk) {
    const size_t count = std::min<size_t>(chunk, prompt.size() - start);
    position.resize(count);
    std::iota(position.begin(), position.end(), static_cast<int32_t>(sequence->length()));
    zero.assign(count, 0);
    is_prompt.assign(count, 1);
    const bool last = start + count == prompt.size();
    const int32_t row = static_cast<int32_t>(count) - 1;
    Step step;
    step.token = prompt.subspan(start, count);
    step.position = position;
    step.sequence = zero;
    step.is_prompt = is_prompt;
    step.sequences = {&sequence, 1};
    if (last) step.logits_rows = {&row, 1};
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
  KT_CHECK(options.max_new_tokens >= 0 && options.prompt_chunk > 0,
           "generate: max_new_tokens=", options.max_new_tokens,
           ", prompt_chunk=", options.prompt_chunk, " are out of range");
  for (const auto& sequence : sequences) KT_CHECK(sequence, "generate: a sequence is none");
  const int count = static_cast<int>(sequences.size());
  const auto vocab = static_cast<size_t>(decoder.vocab_size());
  GenerateResult result;
  result.tokens.resize(count);
  if (options.max_new_tokens == 0) return result;
  std::vector<Sampler> samplers;
  std::vector<int32_t> current(count, -1);
  std::vector<int> active;
  StepOut out;
  bool goes_on = true;

  const auto choose = [&](int s, std::span<float> logits) {
    if (static_cast<int>(result.tokens[s].size()) < options.min_new_tokens) {
      for (const int32_t id : options.stop_ids)
        if (id >= 0 && static_cast<size_t>(id) < vocab) logits[id] = -INFINITY;
    }
    current[s] = samplers[s].sample(logits);
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
    evaluate_prompt(decoder, sequences[s], prompts[s], options.prompt_chunk, out);
    result.prompt_tokens += static_cast<int64_t>(prompts[s].size());
    if (choose(s, out.logits)) active.push_back(s);
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
    decoder.step({token, position, rows, generated, chosen, rows}, out);
    result.eval_tokens += static_cast<int64_t>(active.size());
    std::vector<int> still;
    for (size_t i = 0; i < active.size() && goes_on; ++i) {
      if (choose(active[i], {out.logits.data() + i * vocab, vocab})) still.push_back(active[i]);
    }
    active = std::move(still);
  }
  result.eval_seconds = os::seconds() - begin;
  return result;
}

}  // namespace kt::program
