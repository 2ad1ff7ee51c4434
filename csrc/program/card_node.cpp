#include "program/card_node.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace kt::program {

namespace {

/// Indices of a step's wanted rows, by row.
std::vector<std::vector<size_t>> places_of(const Step& step, int rows) {
  std::vector<std::vector<size_t>> places(rows);
  for (size_t place = 0; place < step.logits_rows.size(); ++place)
    places[step.logits_rows[place]].push_back(place);
  return places;
}

}  // namespace

/// A step of the card under way, as its jobs see it.
struct CardNode::Running {
  const CardNode* node;
  cpu::Context* context;
  std::vector<cpu::Rounding> rounding;
  std::exception_ptr error;
};

CardNode::CardNode(std::string name, CardModel card, CardOptions options,
                   std::vector<CardJob> jobs, int64_t hidden_size)
    : Node(std::move(name)),
      card_(std::move(card)),
      options_(std::move(options)),
      jobs_(std::move(jobs)),
      hidden_size_(hidden_size) {
  KT_CHECK(options_.rows > 0 && options_.sequences > 0, this->name(), ": ", options_.rows,
           " rows of ", options_.sequences, " sequences");
}

void CardNode::run(StepState& state) const {
  std::vector<int> order(state.m);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return state.step.sequence[a] < state.step.sequence[b];
  });
  if (options_.vocab > 0 && state.step.sampling.empty())
    state.logits->resize(state.step.logits_rows.size() * options_.vocab);
  const Places places = places_of(state.step, state.m);
  std::vector<int> piece;
  int sequences = 0, wanted = 0, last = -1;
  for (const int row : order) {
    const bool opens = piece.empty() || state.step.sequence[row] != last;
    const int more = options_.vocab > 0 && !places[row].empty();
    const bool is_full = int(piece.size()) == options_.rows ||
                         wanted + more > KT_CUDA_MOST_HEAD_ROWS ||
                         sequences + opens > options_.sequences;
    if (!piece.empty() && is_full) {
      run_piece(state, piece, places);
      piece.clear();
      sequences = wanted = 0;
    }
    sequences += piece.empty() || opens;
    wanted += more;
    last = state.step.sequence[row];
    piece.push_back(row);
  }
  run_piece(state, piece, places);
}

void CardNode::run_piece(StepState& state, const std::vector<int>& rows,
                         const Places& places) const {
  const int m = static_cast<int>(rows.size());
  const int64_t n = hidden_size_;
  Running running{this, &state.context, {}, nullptr};
  const bool samples = !state.step.sampling.empty();
  // A prompt's rows follow one another: the card reads them where they are, and writes there.
  const bool in_place =
      rows.back() - rows.front() == m - 1 && std::is_sorted(rows.begin(), rows.end());
  std::vector<float> moved(in_place ? 0 : m * n), logits;
  float* const hidden = in_place ? state.hidden + rows.front() * n : moved.data();
  std::vector<int32_t> position(m), sequence(m), counts, head_rows, tokens;
  std::vector<kt_cuda_sampling> sampling;
  std::vector<uint8_t> is_prompt(m);
  std::vector<const int32_t*> pages;
  int last = -1;
  for (int i = 0; i < m; ++i) {
    const int row = rows[i], owner = state.step.sequence[row];
    if (pages.empty() || owner != last) {
      const auto numbers = state.step.sequences[owner]->pages();
      pages.push_back(numbers.data());
      counts.push_back(static_cast<int32_t>(numbers.size()));
      last = owner;
    }
    position[i] = state.step.position[row];
    sequence[i] = static_cast<int32_t>(pages.size()) - 1;
    is_prompt[i] = state.step.is_prompt[row] != 0;
    running.rounding.push_back(state.rounding[row]);
    if (!in_place) std::copy_n(state.hidden + row * n, n, hidden + i * n);
    if (options_.vocab == 0) continue;
    if (!places[row].empty()) head_rows.push_back(i);
    for (const size_t place : places[row])
      if (samples) sampling.push_back(state.step.sampling[place]);
  }
  KT_CHECK(!samples || sampling.size() == head_rows.size(), "a row is sampled twice");
  tokens.resize(sampling.size());
  if (!samples) logits.resize(head_rows.size() * options_.vocab);
  const bool hidden_out = options_.vocab == 0 || state.step.want_hidden;
  kt_cuda_step step{};
  step.rows = m, step.sequences = static_cast<int>(pages.size());
  step.hidden = hidden, step.position = position.data(), step.sequence = sequence.data();
  step.is_prompt = is_prompt.data();
  step.pages = pages.data(), step.num_pages = counts.data();
  step.num_head_rows = static_cast<int>(head_rows.size()), step.head_rows = head_rows.data();
  step.sampling = sampling.empty() ? nullptr : sampling.data(), step.tokens = tokens.data();
  step.logits = logits.data(), step.hidden_out = hidden_out ? hidden : nullptr;
  step.job = &CardNode::run_job, step.context = &running;
  if (card_.step(card_.model, &step) != 0) {
    if (running.error) std::rethrow_exception(running.error);
    throw Error(concat(name(), " on ", options_.device, ": ", card_.error()));
  }
  for (int i = 0; hidden_out && !in_place && i < m; ++i)
    std::copy_n(hidden + i * n, n, state.hidden + rows[i] * n);
  for (size_t h = 0; h < head_rows.size(); ++h) {
    for (const size_t place : places[rows[head_rows[h]]]) {
      if (samples)
        (*state.tokens)[place] = tokens[h];
      else
        std::copy_n(logits.data() + h * options_.vocab, options_.vocab,
                    state.logits->data() + place * options_.vocab);
    }
  }
}

int CardNode::run_job(void* context, int job, const kt_cuda_job* data) {
  Running& running = *static_cast<Running*>(context);
  const CardNode& node = *running.node;
  try {
    KT_CHECK(job >= 0 && size_t(job) < node.jobs_.size(), "job ", job, " of ", node.jobs_.size());
    const cpu::Rounding* const rounding = running.rounding.data() + data->first_row;
    if (const auto* experts = std::get_if<0>(&node.jobs_[job]))
      (*experts)->forward(*running.context, data->x, data->rows, node.options_.experts_per_token,
                          data->ids, data->weights, rounding, data->out);
    else
      std::get<1>(node.jobs_[job])
          ->forward(*running.context, data->x, data->rows, rounding, data->out);
    return 0;
  } catch (...) {
    if (!running.error) running.error = std::current_exception();
    return 1;
  }
}

void CardNode::copy_page(int32_t from, int32_t to) const {
  if (card_.copy_page(card_.model, from, to) != 0)
    throw Error(concat(name(), " on ", options_.device, ": ", card_.error()));
}

}  // namespace kt::program
