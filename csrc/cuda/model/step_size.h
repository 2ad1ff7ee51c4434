// Sizes of a step: all that its launches depend on. And parts of it that are steps themselves.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/api_step.h"

namespace kt::cuda {

/// What a step's launches depend on.
struct StepSize {
  int rows = 1, sequences = 1;
  int max_tokens = 1;  // of a sequence
  int head_rows = 1;   // whose logits are wanted; 0: none
  bool hidden_out = false;
  bool sample = false;   // tokens are wanted instead of logits
  bool graph = false;    // it is captured and replayed: a decode step of few rows
  bool defers = false;   // the CPU's least experts are added by the next layer; of graphs only
  bool streams = false;  // experts come to the card, where a layer has sources
  bool dense = false;    // products dequantise; never captured, for the streams share the memory
  int first_row = 0;     // of a slice, in the step; 0 of a whole step
  int input = 0;         // which of the step's inputs a slice has

  /// One token of each of so many sequences.
  static StepSize decode(int rows, bool head) { return {rows, rows, 1, head ? rows : 0, !head}; }
  /// Whether it is one of those.
  bool is_decode(bool head) const {
    return !streams && !dense && max_tokens == 1 && head_rows == (head ? rows : 0) &&
           hidden_out == !head;
  }
};

/// Some rows of a step that follow one another, as a step. Rows with logits must ascend. The whole
/// one must stay.
class PartOfStep {
 public:
  PartOfStep(const kt_cuda_step& whole, int first, int rows, int hidden, int vocab);
  PartOfStep(const PartOfStep&) = delete;
  PartOfStep& operator=(const PartOfStep&) = delete;
  kt_cuda_step step;

 private:
  std::vector<int32_t> sequence_, head_rows_;
};

}  // namespace kt::cuda
