#include "cuda/model/step_input.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "cuda/attention/flash.h"
#include "cuda/layer/layer.h"

namespace kt::cuda {

StepInput::StepInput(const CardShape& shape, int head_rows, Memory& memory)
    : s_(shape), head_rows_(head_rows) {
  const size_t numbers = div_up(s_.rows, s_.slice) * ints(s_, head_rows_, s_.sequences);
  card_ = memory.take<int32_t>(numbers);
  host_ = memory.take_mapped<int32_t>(numbers);
  hidden_ = memory.take_mapped<float>(size_t(s_.rows) * s_.hidden);
}

StepInput::Arrays StepInput::arrays(int32_t* base, int input) const {
  const int m = s_.slice;
  base += input * ints(s_, head_rows_, s_.sequences);
  return {base,
          base + m,
          base + 2 * m,
          base + 3 * m,
          base + 4 * m + 1,
          base + 4 * m + 1 + head_rows_};
}

StepSize StepInput::write(const kt_cuda_step& step, int padded) {
  KT_CHECK(step.rows > 0 && step.rows <= s_.rows, step.rows, " rows, there is room for ", s_.rows);
  if (!s_.is_long(step.rows)) return write_slice(step, padded, 0);
  slices_.clear();
  StepSize size;
  for (int first = 0; first < step.rows; first += s_.slice) {
    PartOfStep part(step, first, std::min(s_.slice, step.rows - first), s_.hidden, s_.vocab);
    part.step.num_head_rows = 0;
    slices_.push_back(write_slice(part.step, 0, static_cast<int>(slices_.size())));
    slices_.back().first_row = first;
    slices_.back().dense = true;
    size.max_tokens = std::max(size.max_tokens, slices_.back().max_tokens);
  }
  size.rows = step.rows, size.sequences = step.sequences;
  size.dense = size.streams = true, size.hidden_out = step.hidden_out != nullptr;
  write_head_rows(step, 0, size);
  return size;
}

StepSize StepInput::write_slice(const kt_cuda_step& step, int padded, int index) {
  const int m = std::max(step.rows, padded), count = step.sequences + (m - step.rows);
  KT_CHECK(m <= s_.slice, m, " rows, there is room for ", s_.slice);
  KT_CHECK(step.sequences > 0 && count <= s_.sequences, count, " sequences, there is room for ",
           s_.sequences);
  std::memcpy(hidden_ + size_t(index) * s_.slice * s_.hidden, step.hidden,
              sizeof(float) * step.rows * s_.hidden);
  const Arrays in = arrays(host_, index);
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
  write_head_rows(step, padded, size);
  return size;
}

void StepInput::write_head_rows(const kt_cuda_step& step, int padded, StepSize& size) {
  const int most = s_.vocab > 0 ? std::min(size.rows, int{KT_CUDA_MOST_HEAD_ROWS}) : 0;
  KT_CHECK(step.num_head_rows >= 0 && step.num_head_rows <= most,
           "logits of ", step.num_head_rows, " rows of ", size.rows);
  const Arrays in = arrays(host_, size.input);
  std::fill_n(in.head_rows, in.pages - in.head_rows, -1);
  size.head_rows = step.num_head_rows;
  if (padded > 0 && step.num_head_rows > 0) {
    for (int i = 0; i < size.rows; ++i) in.head_rows[i] = i;
    size.head_rows = size.rows;
    return;
  }
  for (int i = 0; i < step.num_head_rows; ++i) {
    KT_CHECK(step.head_rows[i] >= 0 && step.head_rows[i] < step.rows, "logits of row ",
             step.head_rows[i], " of ", step.rows);
    in.head_rows[i] = step.head_rows[i];
  }
}

std::vector<StepSize> StepInput::slices_of(const StepSize& size) const {
  return s_.is_long(size.rows) ? slices_ : std::vector<StepSize>{size};
}

void StepInput::bring(Stream stream, const StepSize& slice, float* hidden) const {
  launch_copy({{{hidden_ + int64_t{slice.first_row} * s_.hidden, hidden,
                 int64_t{s_.hidden} * slice.rows * 4},
                {arrays(host_, slice.input).position, on_card(slice).position,
                 int64_t(ints(s_, head_rows_, slice.sequences)) * 4}},
               2,
               stream});
}

}  // namespace kt::cuda
