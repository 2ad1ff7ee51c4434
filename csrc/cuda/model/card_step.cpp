// The host's side of a step: what begin_step() writes to mapped memory.
#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "cuda/model/card_model.h"

namespace kt::cuda {

CardModel::Input CardModel::input(int32_t* base) const {
  const int m = s_.slice, heads = head_rows_;
  return {base,
          base + m,
          base + 2 * m,
          base + 3 * m,
          base + 4 * m + 1,
          base + 4 * m + 1 + heads};
}

size_t CardModel::input_ints(int sequences) const {
  return 4 * size_t(s_.slice) + 1 + head_rows_ + size_t(sequences) * s_.max_pages;
}

CardModel::Input CardModel::input_of(const StepSize& slice) const {
  return input(input_ + slice.input * input_ints(s_.sequences));
}

StepSize CardModel::begin_step(const kt_cuda_step& step, int padded, int first_row) {
  KT_CHECK(has_room(), "a step before take_room()");
  host_.first_row = first_row;
  KT_CHECK(step.rows > 0 && step.rows <= s_.rows, step.rows, " rows, there is room for ", s_.rows);
  if (step.rows <= s_.slice) return write_input(step, padded, 0);
  slices_.clear();
  StepSize size;
  for (int first = 0; first < step.rows; first += s_.slice) {
    PartOfStep part(step, first, std::min(s_.slice, step.rows - first), s_.hidden, s_.vocab);
    part.step.num_head_rows = 0;
    slices_.push_back(write_input(part.step, 0, static_cast<int>(slices_.size())));
    slices_.back().first_row = first;
    slices_.back().dense = true;
    size.max_tokens = std::max(size.max_tokens, slices_.back().max_tokens);
  }
  size.rows = step.rows, size.sequences = step.sequences;
  size.dense = size.streams = true, size.hidden_out = step.hidden_out != nullptr;
  write_head_rows(step, 0, size);
  return size;
}

StepSize CardModel::write_input(const kt_cuda_step& step, int padded, int index) {
  const int m = std::max(step.rows, padded), count = step.sequences + (m - step.rows);
  KT_CHECK(m <= s_.slice, m, " rows, there is room for ", s_.slice);
  KT_CHECK(step.sequences > 0 && count <= s_.sequences, count, " sequences, there is room for ",
           s_.sequences);
  std::memcpy(host_hidden_ + size_t(index) * s_.slice * s_.hidden, step.hidden,
              sizeof(float) * step.rows * s_.hidden);
  const Input in = input(host_input_ + index * input_ints(s_.sequences));
  StepSize size{m, count, 1, step.num_head_rows, step.hidden_out != nullptr};
  size.input = index;
  int row = 0;
  for (int i = 0; i < step.sequences; ++i) {
    const int first = row;
    in.first[i] = first;
    for (; row < step.rows && step.sequence[row] == i; ++row) {
      KT_CHECK(row == first || step.position[row] == step.position[row - 1] + 1, "position ",
               step.position[row], " follows ", step.position[row - 1]);
      in.position[row] = step.position[row];
      in.sequence[row] = i;
    }
    KT_CHECK(row > first, "sequence ", i, " has no rows, or they do not follow one another");
    const int length = step.position[row - 1] + 1, needed = div_up(length, kPagePositions);
    KT_CHECK(step.position[first] >= 0 && needed <= step.num_pages[i] && needed <= s_.max_pages,
             "position ", length - 1, " of row ", row - 1, " has no page");
    in.length[i] = length;
    size.max_tokens = std::max(size.max_tokens, row - first);
    for (int page = 0; page < s_.max_pages; ++page) {
      const int number = page < needed ? step.pages[i][page] : 0;
      KT_CHECK(number >= 0 && number < s_.pages, "page ", number, " of ", s_.pages);
      in.pages[i * s_.max_pages + page] = number;
    }
  }
  KT_CHECK(row == step.rows, "row ", row, " belongs to no sequence");
  // Rows nobody asked for: the first position of a page that no sequence has.
  for (int i = step.sequences; i < count; ++i, ++row) {
    in.first[i] = row;
    in.sequence[row] = i;
    in.position[row] = 0, in.length[i] = 1;
    std::fill_n(in.pages + i * s_.max_pages, s_.max_pages, 0);
    in.pages[i * s_.max_pages] = s_.pages;
  }
  in.first[count] = m;
  host_.rows = step.rows;
  size.dense = padded == 0 && dense_.weights && m >= s_.dense_rows;
  size.graph = padded > 0 && m <= kMostGraphRows;
  size.defers = defers_ = s_.deferred > 0 && size.graph;
  if (defers_)
    for (int i = 0; i < step.rows; ++i) is_prompt_[i] = step.is_prompt && step.is_prompt[i];
  write_head_rows(step, padded, size);
  return size;
}

void CardModel::write_head_rows(const kt_cuda_step& step, int padded, StepSize& size) {
  const int most = s_.vocab > 0 ? std::min(size.rows, int{KT_CUDA_MOST_HEAD_ROWS}) : 0;
  KT_CHECK(step.num_head_rows >= 0 && step.num_head_rows <= most,
           "logits of ", step.num_head_rows, " rows of ", size.rows);
  const Input in = input(host_input_ + size.input * input_ints(s_.sequences));
  std::fill_n(in.head_rows, in.pages - in.head_rows, -1);
  size.head_rows = step.num_head_rows;
  if (padded > 0 && step.num_head_rows > 0) {
    for (int i = 0; i < size.rows; ++i) in.head_rows[i] = i;
    size.head_rows = size.rows;
  } else {
    for (int i = 0; i < step.num_head_rows; ++i) {
      KT_CHECK(step.head_rows[i] >= 0 && step.head_rows[i] < step.rows, "logits of row ",
               step.head_rows[i], " of ", step.rows);
      in.head_rows[i] = step.head_rows[i];
    }
  }
  if (step.sampling && step.num_head_rows > 0)
    sample_next({step.sampling, step.sampling + step.num_head_rows}, size);
}

void CardModel::sample_next(const std::vector<kt_cuda_sampling>& how, StepSize& size) {
  KT_CHECK(int(how.size()) <= size.head_rows, how.size(), " tokens of ", size.head_rows, " rows");
  const kt_cuda_sampling greedy{.random = 0, .temperature = 1, .top_p = 1, .min_p = 0, .top_k = 0,
                                .greedy = 1, .pad = 0};  // rows nobody asked for
  for (int i = 0; i < size.head_rows; ++i)
    host_sampling_[i] = CheckedSampling(i < int(how.size()) ? how[i] : greedy);
  size.sample = true;
}

StepSize CardModel::begin_step(const float* embeddings, const int32_t* positions,
                               const std::vector<std::vector<int32_t>>& pages) {
  const int m = s_.rows;
  KT_CHECK(int(pages.size()) == m, pages.size(), " block tables for ", m, " rows");
  std::vector<int32_t> numbers(m), counts(m);
  std::vector<const int32_t*> tables(m);
  for (int i = 0; i < m; ++i) {
    numbers[i] = i, counts[i] = static_cast<int32_t>(pages[i].size());
    tables[i] = pages[i].data();
  }
  kt_cuda_step step{};
  step.rows = step.sequences = m;
  step.hidden = embeddings, step.position = positions, step.sequence = numbers.data();
  step.pages = tables.data(), step.num_pages = counts.data();
  step.num_head_rows = m, step.head_rows = numbers.data();
  return begin_step(step, m);
}

}  // namespace kt::cuda
