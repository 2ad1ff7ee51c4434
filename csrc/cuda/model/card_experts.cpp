// Routed experts on the card: of few rows in one grouped product over all of them, of many rows a
// few experts at a time, dequantised.
//
//   few    route: tiles of 8 tokens per expert | gate, up | activation | down |   -> combine
//   many   sort: rows by expert; their counts to the host, which cuts them into chunks
//          chunk: dequantise gate and up | product | activation | dequantise down | product | add
#include <algorithm>

#include "base/error.h"
#include "cuda/gemm/rows16.h"
#include "cuda/model/card_model.h"

namespace kt::cuda {

/// What products of experts on the card need.
void CardModel::take_experts(Memory& memory) {
  const size_t places = size_t(max_tiles_) * 8;
  const int deep = std::max(s_.hidden, s_.expert_inner);
  num_items_ = memory.take<int32_t>(1);
  gate_items_ = memory.take<GemvItem>(s_.experts), up_items_ = memory.take<GemvItem>(s_.experts);
  down_items_ = memory.take<GemvItem>(s_.experts);
  expert_gate_ = memory.take<float>(2 * places * s_.expert_inner);
  expert_up_ = expert_gate_ + places * s_.expert_inner;
  expert_y_ = memory.take<float>(places * s_.hidden);
  expert_prepared_ = {memory.take<half_t>(prepared_fragments(max_tiles_, deep)),
                      memory.take<float>(prepared_sums(max_tiles_, deep)),
                      memory.take<float>(places)};
}

bool CardModel::has_many_rows(const Layer& layer, const StepSize& size) const {
  if (!knows_slots(layer.w)) return false;
  if (is_long(size)) return true;
  const int64_t choices = int64_t{size.rows} * s_.top_k;
  return size.dense && dense_.x && choices >= int64_t{s_.experts} * s_.dense_rows;
}

void CardModel::route(Stream stream, const ExpertSlot* slots, int rows) const {
  launch_route({ids_, slots, gate_items_, up_items_, down_items_, num_items_, sources_, places_,
                cpu_ids_, rows, s_.experts, s_.top_k, moe_max_tiles(rows, s_.experts, s_.top_k),
                stream});
}

void CardModel::resident_experts(Stream stream, const Layer& layer, const StepSize& size) const {
  if (!has_many_rows(layer, size)) return few_rows_experts(stream, layer, size.rows);
  sort_rows(stream, size);
  begin_sum(stream, nullptr, nullptr, size.rows);
  many_rows_experts(stream, layer, with_slots(layer), layer.w.slot_table, sorted_counts(stream),
                    size);
}

std::vector<int> CardModel::with_slots(const Layer& layer) const {
  std::vector<int> found;
  for (size_t e = 0; e < layer.w.slot_table.size(); ++e)
    if (layer.w.slot_table[e].down) found.push_back(static_cast<int>(e));
  return found;
}

void CardModel::few_rows_experts(Stream stream, const Layer& layer, int rows) const {
  const int most = std::min(s_.experts, rows * s_.top_k), inner = s_.expert_inner;
  const int all_tiles = moe_max_tiles(rows, s_.experts, s_.top_k);
  const auto grouped = [&](const GemvItem* items, const CudaMatrix& matrix, float* y) {
    const GemvParams p{items,
                       num_items_,
                       expert_prepared_,
                       y,
                       most,
                       tiles(rows),
                       matrix.n,
                       matrix.k,
                       matrix.gguf_id,
                       layout_of(matrix.gguf_id),
                       stream};
    launch_quant_gemv(p, choose_gemv_tile(p, s_.sms));
  };
  launch_prepare({normed_, nullptr, s_.hidden, sources_, expert_prepared_, rows, s_.hidden,
                  all_tiles, 0, stream});
  grouped(gate_items_, layer.w.expert_gate, expert_gate_);
  grouped(up_items_, layer.w.expert_up, expert_up_);
  launch_prepare({expert_gate_, expert_up_, inner, sources_, expert_prepared_, all_tiles * 8,
                  inner, all_tiles, 0, stream, true});
  grouped(down_items_, layer.w.expert_down, expert_y_);
}

void CardModel::sort_rows(Stream stream, const StepSize& size) const {
  launch_sort({ids_, dense_.counts, dense_.host_counts, sources_, places_, size.rows, s_.experts,
               s_.top_k, stream});
  launch_rows16({normed_, nullptr, s_.hidden, dense_.x, dense_.x_scales, size.rows, s_.hidden, 0,
                 stream});
}

std::vector<int32_t> CardModel::sorted_counts(Stream stream) const {
  memory_.finish(stream);
  return {dense_.host_counts, dense_.host_counts + s_.experts};
}

void CardModel::begin_sum(Stream stream, const float* addend, const float* gate, int rows) const {
  launch_combine(
      {nullptr, none_, weights_, addend, gate, nullptr, delta_, rows, s_.hidden, 0, stream});
}

void CardModel::many_rows_experts(Stream stream, const Layer& layer,
                                  const std::vector<int>& experts,
                                  const std::vector<ExpertSlot>& at,
                                  const std::vector<int32_t>& counts, const StepSize& size) const {
  const size_t inner = s_.expert_inner, hidden = s_.hidden, values = 2 * inner * hidden;
  const int together = static_cast<int>(
      std::min<size_t>(DenseGemmParams::kMostRuns, dense_.values / values));
  for (const auto& chunk : cut_experts(experts, counts, max_tiles_ * 8, together)) {
    DenseGemmParams p{dense_.x, sources_,  dense_.weights, expert_gate_, 0, int(2 * inner),
                      s_.hidden, false, true, stream};
    p.scales = dense_.x_scales, p.w_step = int64_t(values), p.has_runs = true;
    p.products = static_cast<int>(chunk.size());
    CombineRunsParams sum{expert_y_, places_, weights_, delta_, size.rows, s_.hidden, s_.top_k,
                          p.products, {}, stream};
    int rows = 0;
    for (int i = 0; i < p.products; ++i) {
      p.runs[i] = sum.runs[i] = chunk[i].run;
      p.m = std::max(p.m, chunk[i].run.rows), rows += chunk[i].run.rows;
      half_t* const to = dense_.weights + i * values;
      dequantise(stream, layer.w.expert_gate, at[chunk[i].expert].gate, to, 0, s_.expert_inner);
      dequantise(stream, layer.w.expert_up, at[chunk[i].expert].up, to + inner * hidden, 0,
                 s_.expert_inner);
    }
    launch_dense_gemm(p);
    half_t* const act = expert_prepared_.fragments;
    launch_rows16({expert_gate_, expert_gate_ + inner, int64_t(2 * inner), act,
                   expert_prepared_.scales, rows, s_.expert_inner, 0, stream});
    p.x = act, p.source = nullptr, p.scales = expert_prepared_.scales;
    p.y = expert_y_, p.n = s_.hidden, p.k = s_.expert_inner;
    for (int i = 0; i < p.products; ++i) {
      p.runs[i].first = chunk[i].run.out;
      dequantise(stream, layer.w.expert_down, at[chunk[i].expert].down, dense_.weights + i * values,
                 0, s_.hidden);
    }
    launch_dense_gemm(p);
    launch_combine_runs(sum);
  }
}

void CardModel::combine(Stream stream, int index, const StepSize& size) const {
  const Layer& layer = layers_[index];
  const float* const shared = layer.gate_up ? shared_ : nullptr;
  const float* const gate = layer.w.shared_gate ? shared_weight_ : nullptr;
  const float* const cpu = layer.w.cpu_experts ? cpu_ : nullptr;
  const bool is_owed = size.defers && index > 0 && layers_[index - 1].defers;
  const float* const owed = is_owed ? deferred_ : nullptr;
  if (!layer.w.slots || !has_many_rows(layer, size))
    return launch_combine({expert_y_, layer.w.slots ? places_ : none_, weights_, shared, gate, cpu,
                           delta_, size.rows, s_.hidden, s_.top_k, stream, owed});
  // The sum of the card's experts is there.
  launch_combine({nullptr, none_, weights_, shared, gate, delta_, delta_, size.rows, s_.hidden, 0,
                  stream, owed});
  if (cpu)
    launch_combine({nullptr, none_, weights_, cpu, nullptr, delta_, delta_, size.rows, s_.hidden, 0,
                    stream});
}

}  // namespace kt::cuda
