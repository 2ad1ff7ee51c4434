// The host's side of a step: what begin_step() writes to mapped memory.
#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "cuda/model/card_model.h"

namespace kt::cuda {

CardModel::Input CardModel::input(int32_t* base) const {
  const int m = s_.rows, heads = round_up(std::min(m, kMostHeadRows), 8);
  return {base,
          base + m,
          base + 2 * m,
          base + 3 * m,
          base + 4 * m + 1,
          base + 4 * m + 1 + heads};
}

size_t CardModel::input_ints(int sequences) const {
  const size_t heads = round_up(std::min(s_.rows, kMostHeadRows), 8);
  return 4 * size_t(s_.rows) + 1 + heads + size_t(sequences) * s_.max_pages;
}

StepSize CardModel::begin_step(const kt_cuda_step& step, int padded) {
  const int m = std::max(step.rows, padded), count = step.sequences + (m - step.rows);
  KT_CHECK(step.rows > 0 && m <= s_.rows, m, " rows, there is room for ", s_.rows);
  KT_CHECK(step.sequences > 0 && count <= s_.sequences, count, " sequences, there is room for ",
           s_.sequences);
  KT_CHECK(step.num_head_rows >= 0 && step.num_head_rows <= std::min(m, kMostHeadRows) &&
               (step.num_head_rows == 0 || s_.vocab > 0),
           "logits of ", step.num_head_rows, " rows of ", m);
  std::memcpy(host_hidden_, step.hidden, sizeof(float) * step.rows * s_.hidden);
  const Input in = input(host_input_);
  StepSize size{m, count, 1, step.num_head_rows, step.hidden_out != nullptr};
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
  std::fill_n(in.head_rows, in.pages - in.head_rows, -1);
  if (padded > 0 && step.num_head_rows > 0) {
    for (int i = 0; i < m; ++i) in.head_rows[i] = i;
    size.head_rows = m;
  } else {
    for (int i = 0; i < step.num_head_rows; ++i) {
      KT_CHECK(step.head_rows[i] >= 0 && step.head_rows[i] < step.rows, "logits of row ",
               step.head_rows[i], " of ", step.rows);
      in.head_rows[i] = step.head_rows[i];
    }
  }
  host_.rows = step.rows;
  size.defers = defers_ = s_.deferred > 0 && padded > 0;
  if (step.sampling && step.num_head_rows > 0)
    sample_next({step.sampling, step.sampling + step.num_head_rows}, size);
  size.dense = padded == 0 && dense_.weights && m >= s_.dense_rows;
  return size;
}

void CardModel::sample_next(const std::vector<kt_cuda_sampling>& how, StepSize& size) {
  KT_CHECK(int(how.size()) <= size.head_rows, how.size(), " tokens of ", size.head_rows, " rows");
  for (const kt_cuda_sampling& one : how) check_sampling(one);
  std::copy(how.begin(), how.end(), host_sampling_);
  for (int i = static_cast<int>(how.size()); i < size.head_rows; ++i)
    host_sampling_[i] = kt_cuda_sampling{0, 1, 1, 0, 0, 1, 0};  // rows nobody asked for
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
