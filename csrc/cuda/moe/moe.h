// Routed experts: choosing them, finding those whose weights are on the GPU, and adding results.
//
// An expert's weights are found through a table of slots, written by the host whenever an expert
// comes or goes; nothing computes an address from an expert's number. What has no slot is the
// CPU's.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "cuda/common/types.h"
#include "cuda/gemm/dense_gemm.h"
#include "cuda/quant_gemv/quant_gemv.h"

namespace kt::cuda {

constexpr int kMaxExperts = 512;

/// Scores to experts, as cpu::Router does it (sigmoid with bias and groups, or softmax).
struct RouterParams {
  const float* logits;  // [m, experts]
  const float* bias;    // [experts], for the choice only, or null
  int32_t* ids;         // [m, top_k]
  float* weights;       // [m, top_k]
  int m, experts, top_k;
  int n_group, topk_group;
  bool sigmoid, group_sum_of_two, norm_topk_prob;
  float routed_scaling_factor;
  Stream stream;
};
/// Throws InvalidArgument for options that do not fit.
void launch_router(const RouterParams& params);

/// Where an expert's matrices are on this card; null: they are not.
struct ExpertSlot {
  const uint8_t* gate;
  const uint8_t* up;
  const uint8_t* down;
};

/// Sorts assignments by expert into tiles of 8 tokens and splits them between GPU and CPU.
struct RouteParams {
  const int32_t* ids;       // [m, top_k]
  const ExpertSlot* slots;  // [experts]
  GemvItem* gate_items;     // [max_tiles] the first *num_items are written, by expert
  GemvItem* up_items;
  GemvItem* down_items;
  int32_t* num_items;  // [1]
  int32_t* source;     // [max_tiles * 8] token of every place, -1: none
  int32_t* place;      // [m, top_k] place of an assignment, -1: the CPU's
  int32_t* cpu_ids;    // [m, top_k] the expert where it is the CPU's, else -1
  int m, experts, top_k;
  int max_tiles;  // of all items together: moe_max_tiles
  Stream stream;
  int item_tiles = 1 << 30;  // of an item, at most; an expert with more has several
};
/// Tiles that assignments can fill at most.
constexpr int moe_max_tiles(int m, int experts, int top_k) {
  // Every expert in use has at most 7 empty places.
  const int assignments = m * top_k, used = assignments < experts ? assignments : experts;
  return (assignments + 7 * used) / 8;
}
void launch_route(const RouteParams& params);

/// out = sum over the GPU's assignments of weight * y[place] + shared (times a sigmoid) + cpu
/// + deferred.
struct CombineParams {
  const float* y;        // [max_tiles * 8, n] results of the down products
  const int32_t* place;  // [m, top_k]
  const float* weights;  // [m, top_k]
  const float* shared;   // [m, n] or null: the shared expert
  const float* gate;     // [m] or null: its sigmoid's argument
  const float* cpu;      // [m, n] or null: what the CPU's experts gave, weighted
  float* out;            // [m, n]
  int m, n, top_k;
  Stream stream;
  const float* deferred = nullptr;  // [m, n] or null: as cpu, of the layer before's least experts
};
void launch_combine(const CombineParams& params);

/// Sorts the assignments of many rows by expert, without gaps: those of expert e have the places
/// from the sum of the counts before on, in order.
struct SortParams {
  const int32_t* ids;   // [m, top_k], 0 ... experts - 1
  int32_t* counts;      // [experts]
  int32_t* host_counts;  // the same, where the host reads them
  int32_t* source;      // [m top_k] token of every place
  int32_t* place;       // [m, top_k]
  int m, experts, top_k;
  Stream stream;
};
void launch_sort(const SortParams& params);

/// out += sum over the assignments whose place is in one of the runs of weight * y[row of it].
struct CombineRunsParams {
  const float* y;        // [rows of the runs, n]
  const int32_t* place;  // [m, top_k]
  const float* weights;  // [m, top_k]
  float* out;            // [m, n]
  int m, n, top_k;
  int num_runs;
  GemmRun runs[DenseGemmParams::kMostRuns];
  Stream stream;
};
void launch_combine_runs(const CombineRunsParams& params);

}  // namespace kt::cuda
