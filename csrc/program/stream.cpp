#include "program/stream.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <numeric>

#include "base/error.h"

namespace kt::program {

TokenLogprob logprob_of(std::span<const float> logits, int32_t token, int count) {
  float top = -INFINITY;
  for (const float logit : logits) top = std::max(top, logit);  // a NaN never wins
  double sum = 0;
  for (const float logit : logits)
    if (!std::isnan(logit)) sum += std::exp(logit - top);
  const double log_sum = top + std::log(sum);
  const auto at = [&](int32_t id) { return static_cast<float>(logits[id] - log_sum); };
  TokenLogprob result{token, at(token), {}};
  const int most = std::min<int>(count, static_cast<int>(logits.size()));
  if (most <= 0) return result;
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto key = [&](int32_t id) { return std::isnan(logits[id]) ? -INFINITY : logits[id]; };
  std::partial_sort(order.begin(), order.begin() + most, order.end(), [&](int32_t a, int32_t b) {
    return key(a) != key(b) ? key(a) > key(b) : a < b;
  });
  for (int i = 0; i < most; ++i) result.top.emplace_back(order[i], at(order[i]));
  return result;
}

Stream::Stream(std::shared_ptr<Sequence> sequence, std::vector<int32_t> prompt,
               const StreamOptions& options)
    : tokens_(std::move(prompt)),
      prompt_(static_cast<int64_t>(tokens_.size())),
      options_(options),
      sampler_(options.sampling) {
  KT_CHECK(!tokens_.empty(), "a stream needs a prompt of one token or more");
  set_sequence(std::move(sequence));
  sampler_.saw(tokens_);
}

void Stream::set_sequence(std::shared_ptr<Sequence> sequence) {
  KT_CHECK(sequence, "a stream needs a sequence");
  KT_CHECK(sequence->length() < static_cast<int64_t>(tokens_.size()), "a stream of ",
           tokens_.size(), " tokens cannot go on from a sequence of ", sequence->length());
  sequence_ = std::move(sequence);
  prompt_kind_ = cpu::prompt_kind(prompt_ - sequence_->length());
}

TokenLogprob Stream::choose(std::span<float> logits) {
  const auto vocab = static_cast<int32_t>(logits.size());
  std::vector<float> raw;
  if (options_.top_logprobs >= 0) raw.assign(logits.begin(), logits.end());
  for (const auto& [id, bias] : options_.logit_bias)
    if (id >= 0 && id < vocab) logits[id] += bias;
  if (static_cast<int64_t>(tokens_.size()) - prompt_ < options_.min_new_tokens) {
    for (const int32_t id : options_.stop_ids)
      if (id >= 0 && id < vocab) logits[id] = -INFINITY;
  }
  if (!mask_.empty()) {
    for (int32_t id = 0; id < vocab; ++id) {
      const auto word = static_cast<size_t>(id / 32);
      if (word >= mask_.size() || !((static_cast<uint32_t>(mask_[word]) >> (id % 32)) & 1u))
        logits[id] = -INFINITY;
    }
    mask_.clear();
  }
  const int32_t token = sampler_.sample(logits);
  KT_CHECK(logits[token] != -INFINITY, "no token is allowed here by the request's constraints");
  tokens_.push_back(token);
  if (raw.empty()) return {token, 0.0f, {}};
  return logprob_of(raw, token, options_.top_logprobs);
}

std::optional<kt_cuda_sampling> Stream::for_card() const {
  const bool may_stop = static_cast<int64_t>(tokens_.size()) - prompt_ >= options_.min_new_tokens;
  const bool masks_stops = !may_stop && !options_.stop_ids.empty();
  if (masks_stops || options_.top_logprobs >= 0 || !options_.logit_bias.empty() || !mask_.empty())
    return std::nullopt;
  return sampler_.for_card();
}

TokenLogprob Stream::take(int32_t token) {
  check_token(token);
  sampler_.chose();
  tokens_.push_back(token);
  return {token, 0.0f, {}};
}

/// The rows of one step, and what is done with their logits.
struct StreamStep {
  std::vector<int32_t> token, position, sequence, logits_rows;
  std::vector<uint8_t> is_prompt;
  std::vector<std::shared_ptr<Sequence>> sequences;
  std::vector<kt_cuda_sampling> sampling;  // where a card chooses for everyone
  struct Part {
    int64_t begin;  // position of the first row
    int rows;
    int first_logits = 0, num_logits = 0;  // rows of the logits
    bool ends;                             // the last pending row is among them
  };
  std::vector<Part> parts;

  void add(const Stream& stream, int rows) {
    const int64_t begin = stream.sequence_->length();
    rows = static_cast<int>(std::min<int64_t>(rows, stream.pending()));
    KT_CHECK(rows > 0, "a stream takes part with ", rows, " rows");
    const bool every = stream.options_.prompt_logprobs >= 0 && begin < stream.prompt_;
    Part part{begin, rows, static_cast<int>(logits_rows.size()), 0, rows == stream.pending()};
    for (int i = 0; i < rows; ++i) {
      if (every || (part.ends && i + 1 == rows))
        logits_rows.push_back(static_cast<int32_t>(token.size()));
      token.push_back(stream.tokens_[begin + i]);
      position.push_back(static_cast<int32_t>(begin + i));
      sequence.push_back(static_cast<int32_t>(sequences.size()));
      const auto kind = begin + i < stream.prompt_ ? stream.prompt_kind_ : cpu::RowKind::kGenerated;
      is_prompt.push_back(static_cast<uint8_t>(kind));
    }
    part.num_logits = static_cast<int>(logits_rows.size()) - part.first_logits;
    sequences.push_back(stream.sequence_);
    parts.push_back(part);
  }

  /// All tokens by the card, or none: where one row needs its logits, every row has them.
  void sample_on_card(std::span<const Share> shares) {
    for (size_t i = 0; i < parts.size(); ++i) {
      if (parts[i].num_logits == 0) continue;
      const auto how = parts[i].num_logits == 1 && parts[i].ends
                           ? shares[i].stream->for_card()
                           : std::nullopt;
      if (!how) return sampling.clear();
      sampling.push_back(*how);
    }
  }

  void finish(Stream& stream, const Part& part, StepOut& out, size_t vocab,
              Outcome& outcome) const {
    const auto row = [&](int i) {
      return std::span(out.logits.data() + (part.first_logits + i) * vocab, vocab);
    };
    try {
      if (!sampling.empty()) {
        if (!part.ends) return;
        outcome.token = stream.take(out.tokens[part.first_logits]);
        outcome.chosen = true;
        return;
      }
      const int told = stream.options_.prompt_logprobs;
      for (int i = 0; told >= 0 && i < part.num_logits; ++i) {
        const int64_t next = part.begin + i + 1;
        if (next < stream.prompt_)
          outcome.prompt.push_back(logprob_of(row(i), stream.tokens_[next], told));
      }
      if (!part.ends) return;
      outcome.token = stream.choose(row(part.num_logits - 1));
      outcome.chosen = true;
    } catch (const std::exception& error) {  // this stream's affair, not its neighbours'
      outcome.error = error.what();
    }
  }
};

std::vector<Outcome> run_streams(Decoder& decoder, std::span<const Share> shares) {
  StreamStep step;
  for (const Share& share : shares) step.add(*share.stream, share.rows);
  if (decoder.can_sample()) step.sample_on_card(shares);
  StepOut out;
  decoder.step({step.token, step.position, step.sequence, step.is_prompt, step.sequences,
                step.logits_rows, false, step.sampling},
               out);
  std::vector<Outcome> outcomes(shares.size());
  const auto vocab = static_cast<size_t>(decoder.vocab_size());
  decoder.context().pool.run(static_cast<int64_t>(shares.size()), [&](int64_t i, int) {
    step.finish(*shares[i].stream, step.parts[i], out, vocab, outcomes[i]);
  });
  return outcomes;
}

}  // namespace kt::program
