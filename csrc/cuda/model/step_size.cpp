#include "cuda/model/step_size.h"

namespace kt::cuda {

PartOfStep::PartOfStep(const kt_cuda_step& whole, int first, int rows, int hidden, int vocab)
    : step(whole) {
  const int base = whole.sequence[first];
  for (int i = 0; i < rows; ++i) sequence_.push_back(whole.sequence[first + i] - base);
  int before = 0;  // rows with logits
  while (before < whole.num_head_rows && whole.head_rows[before] < first) ++before;
  for (int i = before; i < whole.num_head_rows && whole.head_rows[i] < first + rows; ++i)
    head_rows_.push_back(whole.head_rows[i] - first);
  step.rows = rows, step.sequences = sequence_.back() + 1;
  step.hidden += int64_t{first} * hidden, step.position += first;
  step.sequence = sequence_.data(), step.pages += base, step.num_pages += base;
  if (step.is_prompt) step.is_prompt += first;
  step.num_head_rows = static_cast<int>(head_rows_.size()), step.head_rows = head_rows_.data();
  if (step.logits) step.logits += int64_t{before} * vocab;
  if (step.sampling) step.sampling += before, step.tokens += before;
  if (step.hidden_out) step.hidden_out += int64_t{first} * hidden;
}

}  // namespace kt::cuda
