// Products of routed experts on the card: of few rows in one grouped product over all of them, of
// many rows a few experts at a time, dequantised.
//
//   few    route: tiles of 8 tokens per expert | gate, up | activation | down |   -> combine
//          in int4 the same, an expert's rows 16 at a time
//   many   sort: rows by expert; their counts to the host, which cuts them into chunks
//          chunk: dequantise gate and up | product | activation | dequantise down | product | add
#include "cuda/model/card_experts.h"

#include <algorithm>

#include "base/error.h"
#include "cuda/gemm/rows16.h"
#include "cuda/int4_gemm/grouped.h"
#include "cuda/model/card_products.h"

namespace kt::cuda {

namespace {

/// Of a step where no expert has more rows than an entry of the list in int4.
constexpr int kFewRows = 8 * kInt4ItemTiles;

}  // namespace

CardExperts::CardExperts(const CardShape& shape, Memory& memory)
    : s_(shape),
      memory_(memory),
      max_tiles_(moe_max_tiles(shape.slice, std::max(1, shape.experts), shape.top_k)) {
  const size_t picks = size_t(s_.slice) * std::max(1, s_.top_k);
  cpu_ids_ = memory.take<int32_t>(picks);
  none_ = memory.put(std::vector<int32_t>(picks, -1));
}

size_t CardExperts::products_bytes() const {
  if (has_products()) return 0;
  const size_t deep = std::max(s_.hidden, s_.expert_inner), places = size_t(max_tiles_) * 8;
  return places * (2 * s_.expert_inner + s_.hidden + 3 * deep) * sizeof(float);
}

void CardExperts::take_products() {
  KT_CHECK(!has_products(), "the memory of experts' products was taken before");
  const size_t places = size_t(max_tiles_) * 8;
  const int deep = std::max(s_.hidden, s_.expert_inner);
  num_items_ = memory_.take<int32_t>(1);
  for (GemvItem** items : {&gate_items_, &up_items_, &down_items_})
    *items = memory_.take<GemvItem>(max_tiles_);
  gate_ = memory_.take<float>(2 * places * s_.expert_inner);
  up_ = gate_ + places * s_.expert_inner;
  y_ = memory_.take<float>(places * s_.hidden);
  prepared_ = {memory_.take<half_t>(prepared_fragments(max_tiles_, deep)),
               memory_.take<float>(prepared_sums(max_tiles_, deep)), memory_.take<float>(places)};
}

/// Sums of split-K, and their counters; of the steps that take one form of the list, most need most.
void CardExperts::take_int4(const std::vector<const CardLayer*>& layers) {
  size_t workspace = 0;
  int counters = 0;
  for (const CardLayer* w : layers) {
    const ExpertMatrices& all = w->slot_experts;
    const CudaMatrix* const parts[] = {&all.gate, &all.up, &all.down};
    const auto count =
        std::count_if(parts, parts + 3, [](const CudaMatrix* m) { return is_int4(m->gguf_id); });
    if (!w->slots || count == 0) continue;
    KT_CHECK(count == 3, count, " of an expert's three matrices are in int4");
    for (const CudaMatrix* part : parts) {
      const PlacedInt4 m = placed_int4(part->gguf_id, part->n, part->k);
      for (const int rows : {std::min(s_.slice, kFewRows), s_.slice}) {
        const int most = most_items(rows, true);
        const Int4Tile tile = choose_int4_grouped_tile(m, most, s_.sms, s_.arch);
        workspace = std::max(workspace, int4_workspace_bytes(tile));
        counters = std::max(counters, int4_grouped_counters(m, most, tile));
      }
    }
  }
  if (counters == 0) return;
  int4_workspace_ = memory_.take<float>(workspace / sizeof(float));
  int4_counters_ = memory_.put(std::vector<int32_t>(counters, 0));
}

size_t CardExperts::row_bytes() const {
  return s_.hidden * sizeof(half_t) + sizeof(float) + std::max(1, s_.top_k) * sizeof(int32_t);
}

size_t CardExperts::rows_bytes() const {
  return (size_t(max_tiles_) * 8 + s_.experts) * sizeof(int32_t);
}

void CardExperts::take_rows(const Rows& rows, const DenseRoom& dense) {
  rows_ = rows, dense_ = dense;
  const size_t picks = size_t(s_.rows) * std::max(1, s_.top_k), filled = round_up(s_.rows, 8);
  places_ = memory_.take<int32_t>(picks);
  if (!has_products()) return;
  sources_ = memory_.take<int32_t>(std::max(picks, size_t(max_tiles_) * 8));
  if (!dense_.weights) return;
  x_ = memory_.take<half_t>(filled * s_.hidden);
  x_scales_ = memory_.take<float>(filled);
  counts_ = memory_.take<int32_t>(s_.experts);
  host_counts_ = memory_.take_mapped<int32_t>(s_.experts);
}

bool CardExperts::has_many_rows(const CardLayer& w, const StepSize& size) const {
  if (!knows_slots(w)) return false;
  if (s_.is_long(size.rows)) return true;
  const int64_t choices = int64_t{size.rows} * s_.top_k;
  return size.dense && x_ && choices >= int64_t{s_.experts} * s_.dense_rows;
}

void CardExperts::route(Stream stream, const CardLayer& w, int rows) const {
  route_to(stream, w.slots, w.slot_experts, rows);
}

void CardExperts::route_to(Stream stream, const ExpertSlot* slots, const ExpertMatrices& matrices,
                           int rows) const {
  RouteParams p{rows_.ids, slots,   gate_items_, up_items_,   down_items_,
                num_items_, sources_, places_,     cpu_ids_,    rows,
                s_.experts, s_.top_k, moe_max_tiles(rows, s_.experts, s_.top_k), stream};
  if (is_int4(matrices.gate.gguf_id)) p.item_tiles = kInt4ItemTiles;
  launch_route(p);
}

int CardExperts::most_items(int rows, bool int4) const {
  // An expert has a row of every token at most.
  if (int4 && rows > kFewRows) return moe_max_tiles(rows, s_.experts, s_.top_k);
  return std::min(s_.experts, rows * s_.top_k);
}

void CardExperts::resident(Stream stream, const CardLayer& w, const StepSize& size) const {
  if (!has_many_rows(w, size)) return few_rows(stream, w.slot_experts, size.rows);
  sort_rows(stream, size);
  begin_sum(stream, nullptr, nullptr, size.rows);
  many_rows(stream, w.slot_experts, with_slots(w), w.slot_table, sorted_counts(stream), size);
}

std::vector<int> CardExperts::with_slots(const CardLayer& w) {
  std::vector<int> found;
  for (size_t e = 0; e < w.slot_table.size(); ++e)
    if (w.slot_table[e].down) found.push_back(static_cast<int>(e));
  return found;
}

void CardExperts::few_rows(Stream stream, const ExpertMatrices& w, int rows) const {
  if (is_int4(w.gate.gguf_id)) return few_rows_int4(stream, w, rows);
  const int most = most_items(rows, false), inner = s_.expert_inner;
  const int all_tiles = moe_max_tiles(rows, s_.experts, s_.top_k);
  const auto grouped = [&](const GemvItem* items, const CudaMatrix& matrix, float* y) {
    const GemvParams p{items,
                       num_items_,
                       prepared_,
                       y,
                       most,
                       tiles(rows),
                       matrix.n,
                       matrix.k,
                       matrix.gguf_id,
                       layout_of(matrix.gguf_id),
                       stream};
    launch_quant_gemv(p, choose_gemv_tile(p, s_.sms, s_.arch));
  };
  launch_prepare({rows_.normed, nullptr, s_.hidden, sources_, prepared_, rows, s_.hidden,
                  all_tiles, 0, stream});
  grouped(gate_items_, w.gate, gate_);
  grouped(up_items_, w.up, up_);
  launch_prepare({gate_, up_, inner, sources_, prepared_, all_tiles * 8, inner, all_tiles, 0,
                  stream, true});
  grouped(down_items_, w.down, y_);
}

void CardExperts::few_rows_int4(Stream stream, const ExpertMatrices& w, int rows) const {
  const int places = moe_max_tiles(rows, s_.experts, s_.top_k) * 8, inner = s_.expert_inner;
  half_t* const x = prepared_.fragments;  // row by row
  const auto grouped = [&](const GemvItem* items, const CudaMatrix& matrix, float* y) {
    const Int4GroupedParams p{items,
                              num_items_,
                              x,
                              prepared_.scales,
                              y,
                              int4_workspace_,
                              int4_counters_,
                              most_items(rows, true),
                              placed_int4(matrix.gguf_id, matrix.n, matrix.k),
                              stream};
    launch_int4_grouped(p, choose_int4_grouped_tile(p.matrix, p.max_items, s_.sms, s_.arch));
  };
  Rows16Params in{rows_.normed, nullptr, s_.hidden, x, prepared_.scales, places, s_.hidden, 0,
                  stream, sources_};
  launch_rows16(in);
  grouped(gate_items_, w.gate, gate_);
  grouped(up_items_, w.up, up_);
  in.x = gate_, in.up = up_, in.stride = in.k = inner, in.in_place = true;
  launch_rows16(in);
  grouped(down_items_, w.down, y_);
}

void CardExperts::sort_rows(Stream stream, const StepSize& size) const {
  launch_sort({rows_.ids, counts_, host_counts_, sources_, places_, size.rows, s_.experts,
               s_.top_k, stream});
  launch_rows16({rows_.normed, nullptr, s_.hidden, x_, x_scales_, size.rows, s_.hidden, 0,
                 stream});
}

std::vector<int32_t> CardExperts::sorted_counts(Stream stream) const {
  memory_.finish(stream);
  return {host_counts_, host_counts_ + s_.experts};
}

void CardExperts::begin_sum(Stream stream, const float* addend, const float* gate, int rows) const {
  launch_combine({nullptr, none_, rows_.weights, addend, gate, nullptr, rows_.sum, rows, s_.hidden,
                  0, stream});
}

void CardExperts::many_rows(Stream stream, const ExpertMatrices& w, const std::vector<int>& experts,
                            const std::vector<ExpertSlot>& at, const std::vector<int32_t>& counts,
                            const StepSize& size) const {
  const size_t inner = s_.expert_inner, hidden = s_.hidden, values = 2 * inner * hidden;
  const int together = static_cast<int>(
      std::min<size_t>(DenseGemmParams::kMostRuns, dense_.values / values));
  for (const auto& chunk : cut_experts(experts, counts, max_tiles_ * 8, together)) {
    DenseGemmParams p{x_,         sources_, dense_.weights, gate_, 0, int(2 * inner),
                      s_.hidden, false,    true,           stream};
    p.scales = x_scales_, p.w_step = int64_t(values), p.has_runs = true;
    p.products = static_cast<int>(chunk.size());
    CombineRunsParams sum{y_, places_, rows_.weights, rows_.sum, size.rows, s_.hidden, s_.top_k,
                          p.products, {}, stream};
    int rows = 0;
    for (int i = 0; i < p.products; ++i) {
      p.runs[i] = sum.runs[i] = chunk[i].run;
      p.m = std::max(p.m, chunk[i].run.rows), rows += chunk[i].run.rows;
      half_t* const to = dense_.weights + i * values;
      dequantise(stream, w.gate, at[chunk[i].expert].gate, to, 0, s_.expert_inner);
      dequantise(stream, w.up, at[chunk[i].expert].up, to + inner * hidden, 0,
                 s_.expert_inner);
    }
    launch_dense_gemm(p);
    half_t* const act = prepared_.fragments;
    launch_rows16({gate_, gate_ + inner, int64_t(2 * inner), act, prepared_.scales, rows,
                   s_.expert_inner, 0, stream});
    p.x = act, p.source = nullptr, p.scales = prepared_.scales;
    p.y = y_, p.n = s_.hidden, p.k = s_.expert_inner;
    for (int i = 0; i < p.products; ++i) {
      p.runs[i].first = chunk[i].run.out;
      dequantise(stream, w.down, at[chunk[i].expert].down, dense_.weights + i * values, 0,
                 s_.hidden);
    }
    launch_dense_gemm(p);
    launch_combine_runs(sum);
  }
}

void CardExperts::combine(Stream stream, const CardLayer& w, const Addends& a,
                          const StepSize& size) const {
  if (!w.slots || !has_many_rows(w, size))
    return launch_combine({y_, w.slots ? places_ : none_, rows_.weights, a.shared, a.gate, a.cpu,
                           rows_.sum, size.rows, s_.hidden, s_.top_k, stream, a.deferred});
  // The sum of the card's experts is there.
  launch_combine({nullptr, none_, rows_.weights, a.shared, a.gate, rows_.sum, rows_.sum, size.rows,
                  s_.hidden, 0, stream, a.deferred});
  if (a.cpu)
    launch_combine({nullptr, none_, rows_.weights, a.cpu, nullptr, rows_.sum, rows_.sum, size.rows,
                    s_.hidden, 0, stream});
}

}  // namespace kt::cuda
