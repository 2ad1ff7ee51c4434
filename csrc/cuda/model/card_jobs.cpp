#include "cuda/model/card_jobs.h"

#include <algorithm>

#include "base/error.h"

namespace kt::cuda {

CardJobs::CardJobs(const CardShape& shape, const std::vector<Part>& layers, Memory& memory)
    : s_(shape), layer_defers_(layers.size(), false) {
  const size_t picks = size_t(s_.slice) * std::max(1, s_.top_k);
  const size_t values = size_t(s_.slice) * s_.hidden;
  x_ = memory.take_mapped<float>(values);
  weights_ = memory.take_mapped<float>(picks);
  ids_ = memory.take_mapped<int32_t>(picks);
  whole_ = {0, 0, x_, ids_, weights_, memory.take_mapped<float>(values)};
  for (size_t i = 0; i < layers.size(); ++i)
    if (layers[i] != Part::kNothing) layers_.push_back(static_cast<int>(i));
  if (s_.deferred == 0) return;
  KT_CHECK(s_.deferred > 0 && s_.deferred < s_.top_k, "of ", s_.top_k,
           " experts per token 1 to ", s_.top_k - 1, " can be deferred, not ", s_.deferred);
  for (size_t i = 0; i + 1 < layers.size(); ++i)
    layer_defers_[i] = layers[i] == Part::kExperts && layers[i + 1] == Part::kExperts;
  now_ids_.resize(picks), later_ids_.resize(picks), is_prompt_.resize(s_.slice);
  late_on_card_ = memory.take<float>(values);
  now_ = later_ = whole_;
  now_.ids = now_ids_.data(), later_.ids = later_ids_.data();
  later_.out = memory.take_mapped<float>(values);
}

void CardJobs::begin(const kt_cuda_step& step, bool defers, int first_row) {
  whole_.rows = step.rows, whole_.first_row = first_row;
  defers_ = defers;
  if (defers_)
    for (int i = 0; i < step.rows; ++i) is_prompt_[i] = step.is_prompt && step.is_prompt[i];
}

void CardJobs::split() {
  const int k = s_.top_k;
  for (int row = 0; row < whole_.rows; ++row) {
    const int32_t* ids = whole_.ids + row * k;
    const float* weights = whole_.weights + row * k;
    for (int i = 0; i < k; ++i) {
      int before = 0;  // choices with more weight
      for (int j = 0; j < k; ++j)
        before += weights[j] > weights[i] || (weights[j] == weights[i] && j < i);
      const bool later = !is_prompt_[row] && before >= k - s_.deferred;
      now_ids_[row * k + i] = later ? -1 : ids[i];
      later_ids_[row * k + i] = later ? ids[i] : -1;
    }
  }
  now_.rows = later_.rows = whole_.rows;
  now_.first_row = later_.first_row = whole_.first_row;
}

const kt_cuda_job& CardJobs::job(int number) {
  const int count = static_cast<int>(layers_.size());
  KT_CHECK(number >= 0 && number < 2 * count, "job ", number, " of ", 2 * count);
  if (!defers_ || !layer_defers_[layers_[number % count]]) return whole_;
  if (number >= count) return later_;  // its activations stay until the card knows that it is done
  split();
  return now_;
}

}  // namespace kt::cuda
