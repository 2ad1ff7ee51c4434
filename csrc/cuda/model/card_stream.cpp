// Prompts whose experts come to the card: every expert without a slot is brought to a ring of two
// halves once per step, and multiplied with all the step's tokens that chose it while the next ones
// follow. What is on the card already goes first. The first two halves are filled while the layer's
// attention is still under way.
//
//   copies   | half 0: experts 0 ... s | half 1: s ... 2 s | half 0: ...
//   main     |                         | products of half 0 | products of half 1 | ...
//
// What is not pinned is copied by the host, which waits for room in the half: the products before
// are launched by then, so that the card has them to do meanwhile.
#include <algorithm>

#include "base/error.h"
#include "cuda/model/card_model.h"

namespace kt::cuda {

void CardModel::plan_streaming(Layer& layer, uint8_t* ring, size_t half_bytes) {
  const CardLayer& w = layer.w;
  KT_CHECK(int(w.sources.size()) == s_.experts, w.sources.size(), " sources of ", s_.experts,
           " experts");
  const CudaMatrix* const matrices[] = {&w.expert_gate, &w.expert_up, &w.expert_down};
  std::vector<int> outside;
  for (int e = 0; e < s_.experts; ++e)
    if (!w.sources[e].gate.empty()) outside.push_back(e);
  for (size_t first = 0; first < outside.size(); first += s_.stream_slots) {
    const size_t end = std::min(first + s_.stream_slots, outside.size());
    layer.rounds.emplace_back(outside.begin() + first, outside.begin() + end);
    uint8_t* at = ring + (layer.rounds.size() - 1) % 2 * half_bytes;
    std::vector<ExpertSlot> table(s_.experts, ExpertSlot{});
    for (const int e : layer.rounds.back()) {
      const uint8_t** const places[] = {&table[e].gate, &table[e].up, &table[e].down};
      for (int i = 0; i < 3; ++i) {
        *places[i] = at;
        at += round_up<size_t>(matrix_bytes(*matrices[i]), 256);
      }
    }
    layer.round_slots.push_back(memory_.put(table));
    layer.round_places.push_back(std::move(table));
  }
}

void CardModel::pin_sources(size_t most_bytes) {
  std::vector<HostRange> pieces;
  for (const Layer& layer : layers_)
    for (const ExpertSource& source : layer.w.sources)
      for (const auto* part : {&source.gate, &source.up, &source.down})
        for (const ExpertSource::Piece& piece : *part) pieces.push_back({piece.at, piece.bytes});
  pins_ = std::make_unique<Pins>(memory_, std::move(pieces), most_bytes);
  memory_.prepare_copies(pins_->report().pinned < pins_->report().asked);
}

bool CardModel::streams_all(const Layer& layer) const {
  if (layer.w.ffn != Ffn::kRouted || !knows_slots(layer.w)) return false;
  const std::vector<ExpertSource>& sources = layer.w.sources;
  const auto there = std::count_if(sources.begin(), sources.end(),
                                   [](const ExpertSource& one) { return !one.gate.empty(); });
  return with_slots(layer).size() + size_t(there) == size_t(s_.experts);
}

bool CardModel::can_stream() const {
  return std::any_of(layers_.begin(), layers_.end(),
                     [](const Layer& layer) { return !layer.rounds.empty(); });
}

void CardModel::bring_round(const Layer& layer, size_t round) const {
  if (round >= layer.rounds.size()) return;
  std::vector<Memory::Transfer> pieces;
  for (const int e : layer.rounds[round]) {
    const ExpertSlot& slot = layer.round_places[round][e];
    const ExpertSource& source = layer.w.sources[e];
    const auto queue = [&](const uint8_t* to, const std::vector<ExpertSource::Piece>& from) {
      for (const ExpertSource::Piece& piece : from) {
        pieces.push_back({const_cast<uint8_t*>(to), piece.at, piece.bytes,
                          pins_->has(piece.at, piece.bytes)});
        to += piece.bytes;
      }
    };
    queue(slot.gate, source.gate), queue(slot.up, source.up), queue(slot.down, source.down);
  }
  memory_.bring(pieces, static_cast<int>(round % 2));
}

void CardModel::streamed_experts(Stream stream, const Layer& layer, const StepSize& size) const {
  const bool is_long = CardModel::is_long(size);
  const bool many = has_many_rows(layer, size);
  const float* const shared = layer.gate_up ? shared_ : nullptr;
  const float* const gate = layer.w.shared_gate ? shared_weight_ : nullptr;
  // The first sum takes the shared expert, every later one what is there already.
  bool begun = false;
  const auto add = [&] {
    few_rows_experts(stream, layer, size.rows);
    launch_combine({expert_y_, places_, weights_, begun ? nullptr : shared, begun ? nullptr : gate,
                    begun ? delta_ : nullptr, delta_, size.rows, s_.hidden, s_.top_k, stream});
    begun = true;
  };
  if (many) {
    sort_rows(stream, size);
    if (!is_long || gate || !shared)
      begin_sum(stream, is_long && shared ? delta_ : shared, gate, size.rows);
  }
  // On their way while the card is still at what comes before.
  bring_round(layer, 0), bring_round(layer, 1);
  const std::vector<int32_t> counts = many ? sorted_counts(stream) : std::vector<int32_t>{};
  if (layer.w.slots) {
    if (many)
      many_rows_experts(stream, layer, with_slots(layer), layer.w.slot_table, counts, size);
    else
      add();  // routed by the router's operation
  }
  for (size_t round = 0; round < layer.rounds.size(); ++round) {
    const int half = static_cast<int>(round % 2);
    memory_.arrived(half, stream);
    if (many) {
      many_rows_experts(stream, layer, layer.rounds[round], layer.round_places[round], counts,
                        size);
    } else {
      route(stream, layer.round_slots[round], size.rows);
      add();
    }
    memory_.release(half, stream);
    if (round > 0) bring_round(layer, round + 1);
  }
}

}  // namespace kt::cuda
