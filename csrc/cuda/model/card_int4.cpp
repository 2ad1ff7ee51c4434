// Products with int4 matrices: f16 rows, and for each of the two streams its own sums of split-K.
#include <algorithm>

#include "cuda/int4_gemm/placed.h"
#include "cuda/model/card_model.h"

namespace kt::cuda {

namespace {

Int4GemmParams int4_product(const CudaMatrix& matrix, int m) {
  Int4GemmParams p{};
  placed_int4(matrix.gguf_id, matrix.n, matrix.k).set(p, matrix.weights);
  static constexpr float kScaled = 1;  // choosing a tile looks at no more than this
  p.m = m, p.row_scales = &kScaled;
  return p;
}

}  // namespace

bool Product::has_int4() const {
  return std::any_of(parts.begin(), parts.end(),
                     [](const CudaMatrix& m) { return is_int4(m.gguf_id); });
}

bool Product::has_others() const {
  return std::any_of(parts.begin(), parts.end(),
                     [](const CudaMatrix& m) { return !is_int4(m.gguf_id); });
}

/// What the largest product may need; of the rows that take one tile size, most need most.
void CardModel::take_int4(Memory& memory, int deepest) {
  size_t workspace = 0;
  int counters = 0;
  bool mixed = false;
  const auto consider = [&](const Product& product) {
    mixed |= product.has_int4() && product.has_others();
    for (const CudaMatrix& matrix : product.parts) {
      if (!is_int4(matrix.gguf_id)) continue;
      for (const int rows : {16, 32, widest_}) {
        const Int4GemmParams p = int4_product(matrix, std::min(rows, widest_));
        const Int4Tile tile = choose_int4_tile(p, s_.sms, s_.arch);
        workspace = std::max(workspace, int4_workspace_bytes(tile));
        counters = std::max(counters, int4_counters(p, tile));
      }
    }
  };
  for (const Layer& layer : layers_)
    for (const Product* p : {&layer.qkv, &layer.q_b, &layer.o, &layer.gate_up, &layer.down})
      consider(*p);
  consider(head_);
  if (counters == 0) return;
  const size_t rows = widest_;
  for (Scratch* scratch : {&main_, &side_}) {
    scratch->rows = mixed ? memory.take<half_t>(rows * deepest) : scratch->prepared.fragments;
    scratch->row_scales = mixed ? memory.take<float>(rows) : scratch->prepared.scales;
    scratch->int4_workspace = memory.take<float>(workspace / sizeof(float));
    scratch->int4_counters = memory.put(std::vector<int32_t>(counters, 0));
  }
}

void CardModel::multiply_int4(Stream stream, const Scratch& scratch, const CudaMatrix& matrix,
                              const half_t* x, const float* row_scales, int m, float* y) const {
  Int4GemmParams p = int4_product(matrix, m);
  p.x = x, p.row_scales = row_scales, p.y = y;
  p.workspace = scratch.int4_workspace, p.counters = scratch.int4_counters;
  p.stream = stream;
  launch_int4_gemm(p, choose_int4_tile(p, s_.sms, s_.arch));
}

}  // namespace kt::cuda
