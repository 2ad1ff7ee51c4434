// The room on a card that a model can use but does not need: planned before any of it is taken, so
// that runs of layers on one card can share it (memory.h: share_out).
//
//   first   memory to dequantise in     prompts go through tensor cores
//   then    a ring for experts          prompts bring the CPU's experts to the card
//   last    rows beyond a slice         each time for more of the prompt
#include <algorithm>

#include "base/error.h"
#include "cuda/model/card_model.h"

namespace kt::cuda {

RoomPlan CardModel::plan_room(size_t bytes) const {
  RoomPlan plan;
  plan.rows = s_.slice;
  // Rows of a slice come first, for no step can do without.
  const size_t least = rows_bytes(s_.slice);
  const auto left = [&] { return bytes > least + plan.bytes ? bytes - least - plan.bytes : 0; };
  plan.dense_values = plan_dense(left());
  plan.bytes += plan.dense_values * sizeof(half_t);
  plan.stream_slots = plan_ring(left());
  plan.bytes += ring_bytes(plan.stream_slots);
  if (can_be_long(plan)) {
    plan.rows = s_.rows;
    while (plan.rows > s_.slice && rows_bytes(plan.rows) > left() + least)
      plan.rows = std::max(s_.slice, plan.rows / 2);
  }
  plan.bytes += rows_bytes(plan.rows);
  return plan;
}

void CardModel::take_room(size_t bytes, size_t pin_bytes) {
  KT_CHECK(!has_room(), "the room was taken before");
  const RoomPlan plan = plan_room(bytes);
  dense_.values = plan.dense_values, s_.stream_slots = plan.stream_slots, s_.rows = plan.rows;
  if (plan.dense_values > 0) dense_.weights = memory_.take<half_t>(plan.dense_values);
  if (plan.stream_slots > 0) {
    if (!experts_->has_products()) experts_->take_products();
    const size_t half = plan.stream_slots * expert_room();
    uint8_t* const ring = memory_.take<uint8_t>(2 * half);
    std::vector<const CardLayer*> streamed;
    for (Layer& layer : layers_) {
      streamed.push_back(&layer.w);
      if (!layer.w.sources.empty()) layer.rounds = experts_->plan_rounds(layer.w, ring, half);
    }
    experts_->pin_sources(streamed, pin_bytes);
  }
  take_rows(memory_);
}

/// Values of weights that are dequantised at a time: 0 where not even the least has room, or slices
/// are too short.
size_t CardModel::plan_dense(size_t room) const {
  if (s_.slice < s_.dense_rows) return 0;
  const size_t hidden = s_.hidden, inner = s_.expert_inner;
  size_t largest = 0, least = 0;
  for (const Layer& layer : layers_) {
    for (const Product* p : {&layer.qkv, &layer.q_b, &layer.o, &layer.gate_up, &layer.down}) {
      for (const CudaMatrix& m : p->parts) {
        largest = std::max(largest, size_t(m.n) * m.k);
        least = std::max(least, size_t(16) * m.k);  // a row group
      }
    }
    if (!layer.w.slots && layer.w.sources.empty()) continue;
    largest = std::max(largest, DenseGemmParams::kMostRuns * 2 * inner * hidden);
    least = std::max(least, 2 * inner * hidden);  // one expert
  }
  size_t values = std::max(least, std::min(largest, s_.dense_bytes / sizeof(half_t)));
  while (values > least && values * sizeof(half_t) > room) values = std::max(least, values / 2);
  return values * sizeof(half_t) <= room ? values : 0;
}

/// Bytes an expert has in the ring: of the layer with the largest ones.
size_t CardModel::expert_room() const {
  size_t largest = 0;
  for (const Layer& layer : layers_)
    if (!layer.w.sources.empty()) largest = std::max(largest, CardExperts::ring_bytes(layer.w));
  return largest;
}

/// Experts of half a ring: one for all layers, where there is room for it, for what is not streamed
/// the CPU computes.
int CardModel::plan_ring(size_t room) const {
  if (expert_room() == 0) return 0;
  int slots = s_.stream_slots;
  // Two that follow while two are used are enough; rows make better use of the memory then.
  while (slots > 2 && ring_bytes(slots) > room / 2) slots /= 2;
  while (slots > 0 && ring_bytes(slots) > room) slots /= 2;
  return slots;
}

/// With the tables of slots, and what products of experts need where nothing has taken it yet.
size_t CardModel::ring_bytes(int slots) const {
  if (slots == 0) return 0;
  const size_t tables = layers_.size() * div_up(s_.experts, slots) *
                        (sizeof(ExpertSlot) * s_.experts + 256);
  return 2 * slots * expert_room() + experts_->products_bytes() + tables;
}

/// Whether steps may be longer than a slice: experts come to the card, and nothing of a layer is
/// the CPU's then.
bool CardModel::can_be_long(const RoomPlan& plan) const {
  return plan.stream_slots > 0 && plan.dense_values > 0 &&
         std::all_of(layers_.begin(), layers_.end(), [this](const Layer& layer) {
           return layer.w.ffn == Ffn::kDense || experts_->streams_all(layer.w);
         });
}

bool CardModel::can_stream() const {
  return std::any_of(layers_.begin(), layers_.end(),
                     [](const Layer& layer) { return !layer.rounds.empty(); });
}

/// What take_rows() takes, a little rounded up.
size_t CardModel::rows_bytes(int rows) const {
  const size_t picks = std::max(1, s_.top_k);
  const size_t row = (3 * s_.hidden + 1) * sizeof(float) +
                     picks * (sizeof(float) + 2 * sizeof(int32_t)) + experts_->row_bytes();
  const size_t inputs =
      size_t(div_up(rows, s_.slice)) * StepInput::ints(s_, head_rows_, s_.sequences);
  return round_up(rows, 8) * row + 4096 + inputs * sizeof(int32_t) + experts_->rows_bytes();
}

/// What there is of every row of a step.
void CardModel::take_rows(Memory& memory) {
  const size_t rows = round_up(s_.rows, 8), picks = size_t(s_.rows) * std::max(1, s_.top_k);
  for (float** part : {&hidden_, &delta_, &normed_}) *part = memory.take<float>(rows * s_.hidden);
  shared_weight_ = memory.take<float>(rows);
  weights_ = memory.take<float>(picks), ids_ = memory.take<int32_t>(picks);
  input_ = std::make_unique<StepInput>(s_, head_rows_, memory);
  experts_->take_rows({normed_, ids_, weights_, delta_}, dense_);
}

}  // namespace kt::cuda
