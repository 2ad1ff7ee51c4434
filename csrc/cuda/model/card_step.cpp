// The host's side of a step, before its launch.
#include "base/error.h"
#include "cuda/model/card_model.h"

namespace kt::cuda {

StepSize CardModel::begin_step(const kt_cuda_step& step, int padded, int first_row) {
  KT_CHECK(has_room(), "a step before take_room()");
  StepSize size = input_->write(step, padded);
  if (!s_.is_long(step.rows)) {
    size.dense = padded == 0 && dense_.weights && size.rows >= s_.dense_rows;
    size.graph = padded > 0 && size.rows <= kMostGraphRows;
    size.defers = s_.deferred > 0 && size.graph;
  }
  jobs_->begin(step, size.defers, first_row);
  if (step.sampling && step.num_head_rows > 0)
    sample_next({step.sampling, step.sampling + step.num_head_rows}, size);
  return size;
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
