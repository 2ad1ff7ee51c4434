// The CPU's part of a card's steps: what its jobs read and write, and, where the model defers, which
// of a token's experts are computed at once and which while the card is in the next layer.
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
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/api_step.h"
#include "cuda/model/card_shape.h"
#include "cuda/model/memory.h"

namespace kt::cuda {

class CardJobs {
 public:
  /// What the CPU has of a layer.
  enum class Part : uint8_t { kNothing, kExperts, kFeedForward };

  /// The shape must stay. Throws InvalidArgument where so many experts cannot be deferred.
  CardJobs(const CardShape& shape, const std::vector<Part>& layers, Memory& memory);

  /// Before a step's launch. first_row: of this step within another.
  void begin(const kt_cuda_step& step, bool defers, int first_row);
  /// Whether the next layer adds a layer's deferred experts, in steps that defer.
  bool layer_defers(int layer) const { return layer_defers_[layer]; }
  /// What all jobs of a step without deferral read and write, one after another.
  const kt_cuda_job& whole() const { return whole_; }
  /// Of a job by its number (CardModel::host_job).
  const kt_cuda_job& job(int number);

  // Where the card writes what jobs read: [slice, hidden], [slice, top_k] twice, mapped.
  float* x() const { return x_; }
  int32_t* ids() const { return ids_; }
  float* weights() const { return weights_; }
  /// What deferred experts gave, [slice, hidden]: mapped, and the card's copy.
  const float* late() const { return later_.out; }
  float* late_on_card() const { return late_on_card_; }

 private:
  void split();

  const CardShape& s_;
  std::vector<int> layers_;         // those with a job
  std::vector<bool> layer_defers_;  // of all layers
  float *x_, *weights_, *late_on_card_ = nullptr;
  int32_t* ids_;
  kt_cuda_job whole_{}, now_{}, later_{};  // and its two parts in a step that defers
  std::vector<int32_t> now_ids_, later_ids_;
  std::vector<uint8_t> is_prompt_;  // [slice] of the step under way
  bool defers_ = false;             // it does
};

}  // namespace kt::cuda
