// Products of a step's rows: with the kernels of few rows, on tiles of 8, or, from
// CardShape::dense_rows on, dequantised a part of the matrix at a time and multiplied as f16.
#include "cuda/model/card_products.h"

#include <algorithm>

#include "base/error.h"
#include "cuda/gemm/rows16.h"
#include "cuda/int4_gemm/dequantise_int4.h"
#include "cuda/int4_gemm/placed.h"
#include "cuda/model/card_model.h"
#include "cuda/quant_gemv/dequantise.h"
#include "quant/formats.h"

namespace kt::cuda {

int Product::n() const {
  int rows = 0;
  for (const CudaMatrix& part : parts) rows += part.n;
  return rows;
}

Product CardModel::product(std::vector<CudaMatrix> parts) {
  Product made;
  for (const CudaMatrix& part : parts) {
    if (!part) continue;
    std::vector<GemvItem> items;
    for (int count = 1; count <= tiles(widest_); ++count)
      items.push_back({part.weights, nullptr, 0, count});
    made.parts.push_back(part);
    made.items.push_back(memory_.put(items));
  }
  return made;
}

Result result(const Product& product, float* y, int rows, int first) {
  for (const CudaMatrix& part : product.parts) {
    if (first < part.n) return {y + first, part.n};
    first -= part.n;
    y += size_t(tiles(rows)) * 8 * part.n;
  }
  throw InvalidArgument(concat("row ", first, " behind the last matrix"));
}

void dequantise(Stream stream, const CudaMatrix& m, const uint8_t* weights, half_t* out, int first,
                int rows) {
  if (!is_int4(m.gguf_id))
    return launch_dequantise({weights, nullptr, out, m.n, m.k, m.gguf_id, layout_of(m.gguf_id),
                              false, stream, first, rows});
  Int4GemmParams p{};
  placed_int4(m.gguf_id, m.n, m.k).set(p, weights);
  launch_dequantise_int4(
      {p.weights, p.scales, p.offsets, out, p.n, p.k, p.group, first, rows, stream});
}

void CardModel::prepare(Stream stream, const Scratch& scratch, const Product& next, const void* x,
                        int x_type, int64_t stride, const StepSize& size, const void* up) const {
  const Prepared& to = scratch.prepared;
  const int k = next.parts[0].k;
  const auto type = static_cast<uint8_t>(x_type);
  if (size.dense)  // the same memory, row by row
    return launch_rows16({x, up, stride, to.fragments, to.scales, size.rows, k, type, stream});
  if (next.has_int4())
    launch_rows16({x, up, stride, scratch.rows, scratch.row_scales, size.rows, k, type, stream});
  if (next.has_others())
    launch_prepare({x, up, stride, nullptr, to, size.rows, k, tiles(size.rows), type, stream});
}

void CardModel::multiply(Stream stream, const Scratch& scratch, const Product& product,
                         const StepSize& size, float* y) const {
  if (!size.dense) return multiply(stream, scratch, product, size.rows, y);
  for (const CudaMatrix& m : product.parts) {
    if (is_int4(m.gguf_id) && size.rows <= kMostInt4Rows) {
      multiply_int4(stream, scratch, m, scratch.prepared.fragments, scratch.prepared.scales,
                    size.rows, y);
      y += size_t(tiles(size.rows)) * 8 * m.n;
      continue;
    }
    DenseGemmParams p{scratch.prepared.fragments, nullptr, nullptr, nullptr, size.rows, 0, m.k,
                      false, true, stream};
    p.scales = scratch.prepared.scales, p.y_stride = m.n;
    const bool is_f16 = m.gguf_id == quant::F16::kGgufId;  // multiplied where it is
    const int most = is_f16 ? m.n : static_cast<int>(std::min<size_t>(m.n, dense_.values / m.k));
    const int part = most < m.n ? most / (most < 128 ? 16 : 128) * (most < 128 ? 16 : 128) : most;
    for (int first = 0; first < m.n; first += part) {
      p.n = std::min(part, m.n - first);
      p.weights = is_f16 ? static_cast<const void*>(m.weights) : dense_.weights;
      p.y = y + first;
      if (!is_f16) dequantise(stream, m, m.weights, dense_.weights, first, p.n);
      launch_dense_gemm(p);
    }
    y += size_t(tiles(size.rows)) * 8 * m.n;
  }
}

void CardModel::multiply(Stream stream, const Scratch& scratch, const Product& product, int rows,
                         float* y) const {
  const int count = tiles(rows);
  for (size_t i = 0; i < product.parts.size(); ++i) {
    const CudaMatrix& m = product.parts[i];
    if (is_int4(m.gguf_id)) {
      multiply_int4(stream, scratch, m, scratch.rows, scratch.row_scales, rows, y);
      y += size_t(count) * 8 * m.n;
      continue;
    }
    const GemvParams p{product.items[i] + (count - 1),
                       nullptr,
                       scratch.prepared,
                       y,
                       1,
                       count,
                       m.n,
                       m.k,
                       m.gguf_id,
                       layout_of(m.gguf_id),
                       stream};
    launch_quant_gemv(p, choose_gemv_tile(p, s_.sms, s_.arch));
    y += size_t(count) * 8 * m.n;
  }
}

void CardModel::feed_forward(Stream stream, const Scratch& scratch, const Layer& layer,
                             const StepSize& size, float* out) const {
  const int inner = layer.gate_up.n() / 2;
  const float* const x = rows_of(normed_, size, s_.hidden);
  prepare(stream, scratch, layer.gate_up, x, 0, s_.hidden, size);
  multiply(stream, scratch, layer.gate_up, size, scratch.wide);
  const Result gate = result(layer.gate_up, scratch.wide, size.rows, 0),
               up = result(layer.gate_up, scratch.wide, size.rows, inner);
  prepare(stream, scratch, layer.down, gate.at, 0, gate.stride, size, up.at);
  multiply(stream, scratch, layer.down, size, out);
  if (layer.w.shared_gate)
    launch_dense_gemv({x, layer.w.shared_gate, rows_of(shared_weight_, size, 1), size.rows, 1,
                       s_.hidden, 0, stream});
}

}  // namespace kt::cuda
