// What a step's operations read of the host: embeddings, positions, block tables, rows with logits.
// write() puts them into mapped memory, bring() has the card copy them; a captured step replays
// that with whatever was written last. A step longer than a slice has such arrays once per slice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/api_step.h"
#include "cuda/common/device.h"
#include "cuda/model/card_shape.h"
#include "cuda/model/memory.h"
#include "cuda/model/step_size.h"

namespace kt::cuda {

class StepInput {
 public:
  /// Where each begins in one array. pages last: [sequences, max_pages].
  struct Arrays {
    int32_t *position, *sequence, *length, *first, *head_rows, *pages;
  };

  /// For steps of shape.rows rows, head_rows of them with logits. The shape must stay.
  StepInput(const CardShape& shape, int head_rows, Memory& memory);
  /// Numbers of a slice with so many sequences.
  static size_t ints(const CardShape& shape, int head_rows, int sequences) {
    return 4 * size_t(shape.slice) + 1 + head_rows + size_t(sequences) * shape.max_pages;
  }

  /// A step's arrays, and its slices where it is long. padded: as CardModel::begin_step has it.
  /// Gives the sizes that follow from the step alone. Throws InvalidArgument for what does not fit.
  StepSize write(const kt_cuda_step& step, int padded);
  /// Of the step written last: itself, or the slices of a long one.
  std::vector<StepSize> slices_of(const StepSize& size) const;
  /// A slice's rows to hidden [slice's rows, shape.hidden] on the card, and its arrays.
  void bring(Stream stream, const StepSize& slice, float* hidden) const;
  /// A slice's arrays on the card.
  Arrays on_card(const StepSize& slice) const { return arrays(card_, slice.input); }
  /// Which rows have logits, on the card: of the whole step.
  const int32_t* head_rows() const { return arrays(card_, 0).head_rows; }
  /// [rows, hidden], mapped: the embeddings; where somebody asks, what is behind the last layer.
  float* hidden() const { return hidden_; }

 private:
  Arrays arrays(int32_t* base, int input) const;
  StepSize write_slice(const kt_cuda_step& step, int padded, int index);
  void write_head_rows(const kt_cuda_step& step, int padded, StepSize& size);

  const CardShape& s_;
  int head_rows_;
  int32_t *card_, *host_;  // the card's, and mapped
  float* hidden_;
  std::vector<StepSize> slices_;  // of the long step that was written
};

}  // namespace kt::cuda
