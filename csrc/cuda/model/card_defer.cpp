// Deferral: which of a token's experts the CPU computes at once, and which while the card is in the
// next layer.
//
// Of a token's top_k experts in a layer, those with the `deferred` least weights (of equal ones the
// later choices) are deferred, as far as they are the CPU's. With x_k what a layer's experts read,
// and D_k, R_k the deferred and the other ones,
//
//   added by layer k = shared_k(x_k) + sum over R_k of w e(x_k) + sum over D_k-1 of w e(x_k-1)
//
// D_k is empty where the next layer does not wait for the CPU; so nothing is left at the end, and
// nothing passes from one card, or one step, to another. It is empty for rows of a prompt as well,
// whichever rows they share a step with.
#include "base/error.h"
#include "cuda/model/card_model.h"

namespace kt::cuda {

void CardModel::take_deferral() {
  const auto waits = [](const Layer& layer) {
    return layer.w.ffn == Ffn::kRouted && layer.w.cpu_experts;
  };
  for (size_t i = 0; i < layers_.size(); ++i)
    if (waits(layers_[i]) || layers_[i].w.ffn == Ffn::kCpu)
      job_layers_.push_back(static_cast<int>(i));
  if (s_.deferred == 0) return;
  KT_CHECK(s_.deferred > 0 && s_.deferred < s_.top_k, "of ", s_.top_k,
           " experts per token 1 to ", s_.top_k - 1, " can be deferred, not ", s_.deferred);
  for (size_t i = 0; i + 1 < layers_.size(); ++i)
    layers_[i].defers = waits(layers_[i]) && waits(layers_[i + 1]);
  const size_t picks = size_t(s_.slice) * s_.top_k, values = size_t(s_.slice) * s_.hidden;
  now_ids_.resize(picks), later_ids_.resize(picks), is_prompt_.resize(s_.slice);
  deferred_ = memory_.take<float>(values);
  now_ = later_ = host_;
  now_.ids = now_ids_.data(), later_.ids = later_ids_.data();
  later_.out = memory_.take_mapped<float>(values);
}

void CardModel::split_job() {
  const int k = s_.top_k;
  for (int row = 0; row < host_.rows; ++row) {
    const int32_t* ids = host_.ids + row * k;
    const float* weights = host_.weights + row * k;
    for (int i = 0; i < k; ++i) {
      int before = 0;  // choices with more weight
      for (int j = 0; j < k; ++j)
        before += weights[j] > weights[i] || (weights[j] == weights[i] && j < i);
      const bool later = !is_prompt_[row] && before >= k - s_.deferred;
      now_ids_[row * k + i] = later ? -1 : ids[i];
      later_ids_[row * k + i] = later ? ids[i] : -1;
    }
  }
  now_.rows = later_.rows = host_.rows;
  now_.first_row = later_.first_row = host_.first_row;
}

const kt_cuda_job& CardModel::host_job(int job) {
  const int count = static_cast<int>(job_layers_.size());
  KT_CHECK(job >= 0 && job < 2 * count, "job ", job, " of ", 2 * count);
  if (!defers_ || !layers_[job_layers_[job % count]].defers) return host_;
  if (job >= count) return later_;  // its activations stay until the card knows that it is done
  split_job();
  return now_;
}

}  // namespace kt::cuda
