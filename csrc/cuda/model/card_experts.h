// Routed experts on a card: those with a slot there, and those that a long prompt brings through a
// ring. Everything about them that a run of layers shares: the order of a step's rows by expert,
// what their products need, the ring, and what of its sources is pinned.
//
//   few rows    route: tiles of 8 tokens per expert, all experts in one grouped product
//   many rows   sort: rows by expert; a few experts at a time are dequantised and multiplied
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cuda/model/card_shape.h"
#include "cuda/model/memory.h"
#include "cuda/model/pins.h"
#include "cuda/model/step_size.h"
#include "cuda/moe/moe.h"
#include "cuda/quant_gemv/quant_gemv.h"

namespace kt::cuda {

/// Memory to dequantise in; null where there was no room.
struct DenseRoom {
  half_t* weights = nullptr;
  size_t values = 0;
};

/// A layer's experts without a slot, in rounds of those that come to the ring together.
struct ExpertRounds {
  std::vector<std::vector<int>> experts;
  std::vector<const ExpertSlot*> slots;         // [experts] each: where they are then, on the card
  std::vector<std::vector<ExpertSlot>> places;  // the same in RAM
  size_t count() const { return experts.size(); }
  bool empty() const { return experts.empty(); }
};

class CardExperts {
 public:
  /// What a step's routed layers read, and where their sum goes; all of its rows.
  struct Rows {
    const float* normed;   // [rows, hidden]
    const int32_t* ids;    // [rows, top_k]
    const float* weights;  // [rows, top_k]
    float* sum;            // [rows, hidden]
  };
  /// What a layer's sum has beside its experts on the card; each may be null.
  struct Addends {
    const float* shared;    // [rows, hidden]: the shared expert
    const float* gate;      // [rows]: its sigmoid's argument
    const float* cpu;       // [rows, hidden]: the CPU's experts
    const float* deferred;  // [rows, hidden]: those that the layer before left to this one
  };

  /// shape: the model's own, which stays; its rows and stream_slots are known before take_rows().
  CardExperts(const CardShape& shape, Memory& memory);

  /// Bytes that take_products() would take: 0 where it has.
  size_t products_bytes() const;
  /// What products of experts need; at most once, by models that have some on the card.
  void take_products();
  /// What products of a layer's experts in int4 need besides; once, with all of them.
  void take_int4(const std::vector<const CardLayer*>& layers);
  bool has_products() const { return num_items_ != nullptr; }
  /// Bytes of each row of a step, and of all together, that take_rows() takes where has_products.
  size_t row_bytes() const;
  size_t rows_bytes() const;
  /// Before the first step. rows: where those of a step are.
  void take_rows(const Rows& rows, const DenseRoom& dense);

  /// Bytes an expert of that layer has in the ring.
  static size_t ring_bytes(const CardLayer& w);
  /// Rounds of a layer through a ring of two halves.
  ExpertRounds plan_rounds(const CardLayer& w, uint8_t* ring, size_t half_bytes);
  /// Of what is streamed at most so many bytes.
  void pin_sources(const std::vector<const CardLayer*>& layers, size_t most_bytes);
  Pins::Report pinned() const { return pins_ ? pins_->report() : Pins::Report{}; }
  /// Whether every expert of the layer is on the card, or on its way there.
  bool streams_all(const CardLayer& w) const;

  /// By the router's choices: tiles of rows per expert with a slot, and what is left for the CPU.
  void route(Stream stream, const CardLayer& w, int rows) const;
  /// [rows, top_k] experts that route() found no slot for; -1: there is one.
  const int32_t* cpu_ids() const { return cpu_ids_; }
  /// Whether experts get rows enough, on the average, to be dequantised, and the host knows which
  /// of them are on the card.
  bool has_many_rows(const CardLayer& w, const StepSize& size) const;
  /// Products of the experts with a slot, for combine().
  void resident(Stream stream, const CardLayer& w, const StepSize& size) const;
  /// Those, and all others round by round, and the shared expert's part: the whole sum. The first
  /// rounds are brought before anything waits for the card.
  void streamed(Stream stream, const CardLayer& w, const ExpertRounds& rounds,
                const Addends& addends, const StepSize& size) const;
  /// The layer's sum, after resident().
  void combine(Stream stream, const CardLayer& w, const Addends& addends,
               const StepSize& size) const;

 private:
  /// Whether the host has the table of slots, where there is one.
  static bool knows_slots(const CardLayer& w) { return !w.slots || !w.slot_table.empty(); }
  static std::vector<int> with_slots(const CardLayer& w);
  /// By a table of slots whose experts have these matrices.
  void route_to(Stream stream, const ExpertSlot* slots, const ExpertMatrices& matrices,
                int rows) const;
  /// To y_, those that route_to() found a slot for.
  void few_rows(Stream stream, const ExpertMatrices& matrices, int rows) const;
  void few_rows_int4(Stream stream, const ExpertMatrices& matrices, int rows) const;
  /// Of that many rows: entries of the list of products.
  int most_items(int rows, bool int4) const;
  void sort_rows(Stream stream, const StepSize& size) const;
  /// Rows of every expert, after sort_rows: waits for the stream.
  std::vector<int32_t> sorted_counts(Stream stream) const;
  /// sum = addend, times a sigmoid where there is a gate; 0 without.
  void begin_sum(Stream stream, const float* addend, const float* gate, int rows) const;
  /// sum += what some of the experts give, which are `at` on the card.
  void many_rows(Stream stream, const ExpertMatrices& matrices, const std::vector<int>& experts,
                 const std::vector<ExpertSlot>& at, const std::vector<int32_t>& counts,
                 const StepSize& size) const;
  void bring_round(const CardLayer& w, const ExpertRounds& rounds, size_t round) const;

  const CardShape& s_;
  Memory& memory_;
  int max_tiles_;  // of experts with a slot, in a slice
  std::unique_ptr<Pins> pins_;
  Rows rows_{};
  DenseRoom dense_;
  // On the card. Of every row with top_k choices: the CPU's experts; no expert's place.
  int32_t *cpu_ids_, *none_;
  int32_t *places_ = nullptr;   // [rows, top_k] of an assignment, among those of its expert
  int32_t *sources_ = nullptr;  // [places] the token
  // Products of few rows: [max_tiles_] items, and of all places what goes in and comes out.
  int32_t* num_items_ = nullptr;
  GemvItem *gate_items_ = nullptr, *up_items_ = nullptr, *down_items_ = nullptr;
  float *gate_ = nullptr, *up_ = nullptr;  // [places, expert_inner]
  float* y_ = nullptr;                     // [places, hidden]
  Prepared prepared_{};
  float* int4_workspace_ = nullptr;  // null: no layer has experts in int4
  int32_t* int4_counters_ = nullptr;
  // Products of many rows; null where there is no room to dequantise.
  half_t* x_ = nullptr;                                 // [rows, hidden] what they multiply
  float* x_scales_ = nullptr;                           // [rows]
  int32_t *counts_ = nullptr, *host_counts_ = nullptr;  // [experts] rows of each
};

}  // namespace kt::cuda
