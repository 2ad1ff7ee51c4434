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
#include "cuda/model/card_experts.h"

namespace kt::cuda {

size_t CardExperts::ring_bytes(const CardLayer& w) {
  size_t bytes = 0;  // each matrix on a boundary that copies like
  for (const CudaMatrix* m :
       {&w.source_experts.gate, &w.source_experts.up, &w.source_experts.down})
    bytes += round_up<size_t>(matrix_bytes(*m), 256);
  return bytes;
}

ExpertRounds CardExperts::plan_rounds(const CardLayer& w, uint8_t* ring, size_t half_bytes) {
  KT_CHECK(int(w.sources.size()) == s_.experts, w.sources.size(), " sources of ", s_.experts,
           " experts");
  const ExpertMatrices& alike = w.source_experts;
  const CudaMatrix* const matrices[] = {&alike.gate, &alike.up, &alike.down};
  std::vector<int> outside;
  for (int e = 0; e < s_.experts; ++e)
    if (!w.sources[e].gate.empty()) outside.push_back(e);
  ExpertRounds made;
  for (size_t first = 0; first < outside.size(); first += s_.stream_slots) {
    const size_t end = std::min(first + s_.stream_slots, outside.size());
    uint8_t* at = ring + made.count() % 2 * half_bytes;
    made.experts.emplace_back(outside.begin() + first, outside.begin() + end);
    std::vector<ExpertSlot> table(s_.experts, ExpertSlot{});
    for (const int e : made.experts.back()) {
      const uint8_t** const places[] = {&table[e].gate, &table[e].up, &table[e].down};
      for (int i = 0; i < 3; ++i) {
        *places[i] = at;
        at += round_up<size_t>(matrix_bytes(*matrices[i]), 256);
      }
    }
    made.slots.push_back(memory_.put(table));
    made.places.push_back(std::move(table));
  }
  return made;
}

void CardExperts::pin_sources(const std::vector<const CardLayer*>& layers, size_t most_bytes) {
  std::vector<HostRange> pieces;
  for (const CardLayer* layer : layers)
    for (const ExpertSource& source : layer->sources)
      for (const auto* part : {&source.gate, &source.up, &source.down})
        for (const ExpertSource::Piece& piece : *part) pieces.push_back({piece.at, piece.bytes});
  pins_ = std::make_unique<Pins>(memory_, std::move(pieces), most_bytes);
  memory_.prepare_copies(pins_->report().pinned < pins_->report().asked);
}

bool CardExperts::streams_all(const CardLayer& w) const {
  if (w.ffn != Ffn::kRouted || !knows_slots(w)) return false;
  const auto there = std::count_if(w.sources.begin(), w.sources.end(),
                                   [](const ExpertSource& one) { return !one.gate.empty(); });
  return with_slots(w).size() + size_t(there) == size_t(s_.experts);
}

void CardExperts::bring_round(const CardLayer& w, const ExpertRounds& rounds,
                              size_t round) const {
  if (round >= rounds.count()) return;
  std::vector<Memory::Transfer> pieces;
  for (const int e : rounds.experts[round]) {
    const ExpertSlot& slot = rounds.places[round][e];
    const ExpertSource& source = w.sources[e];
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

void CardExperts::streamed(Stream stream, const CardLayer& w, const ExpertRounds& rounds,
                           const Addends& a, const StepSize& size) const {
  const bool is_long = s_.is_long(size.rows);
  const bool many = has_many_rows(w, size);
  // The first sum takes the shared expert, every later one what is there already.
  bool begun = false;
  const auto add = [&](const ExpertMatrices& matrices) {
    few_rows(stream, matrices, size.rows);
    launch_combine({y_, places_, rows_.weights, begun ? nullptr : a.shared,
                    begun ? nullptr : a.gate, begun ? rows_.sum : nullptr, rows_.sum, size.rows,
                    s_.hidden, s_.top_k, stream});
    begun = true;
  };
  if (many) {
    sort_rows(stream, size);
    // In a long step the shared expert is where the sum is.
    if (!is_long || a.gate || !a.shared)
      begin_sum(stream, is_long && a.shared ? rows_.sum : a.shared, a.gate, size.rows);
  }
  // On their way while the card is still at what comes before.
  bring_round(w, rounds, 0), bring_round(w, rounds, 1);
  const std::vector<int32_t> counts = many ? sorted_counts(stream) : std::vector<int32_t>{};
  if (w.slots) {
    if (many)
      many_rows(stream, w.slot_experts, with_slots(w), w.slot_table, counts, size);
    else
      add(w.slot_experts);  // routed by the router's operation
  }
  for (size_t round = 0; round < rounds.count(); ++round) {
    const int half = static_cast<int>(round % 2);
    memory_.arrived(half, stream);
    if (many) {
      many_rows(stream, w.source_experts, rounds.experts[round], rounds.places[round], counts,
                size);
    } else {
      route_to(stream, rounds.slots[round], w.source_experts, size.rows);
      add(w.source_experts);
    }
    memory_.release(half, stream);
    if (round > 0) bring_round(w, rounds, round + 1);
  }
}

}  // namespace kt::cuda
