// Products with a card's matrices: what goes together into one, and where its results stand.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/model/card_shape.h"
#include "cuda/quant_gemv/quant_gemv.h"

namespace kt::cuda {

/// Tiles of 8 tokens that so many rows fill.
constexpr int tiles(int rows) { return div_up(rows, 8); }

/// Products with one input; results of a matrix stand together, [8 tiles, n].
struct Product {
  std::vector<CudaMatrix> parts;
  std::vector<const GemvItem*> items;  // of each part: [tiles], the i-th of i + 1 tiles
  explicit operator bool() const { return !parts.empty(); }
  int n() const;
  bool has_int4() const;
  bool has_others() const;
};

/// Results of a product from a row of its matrices on: token t's at `at + t stride`.
struct Result {
  float* at;
  int64_t stride;
};
/// y: of `rows` tokens; first: of all matrices together. Throws InvalidArgument behind the last.
Result result(const Product& product, float* y, int rows, int first);

/// Some rows of a matrix as f16, [rows, k]. weights: where it is; matrix.weights is not read.
void dequantise(Stream stream, const CudaMatrix& matrix, const uint8_t* weights, half_t* out,
                int first, int rows);

}  // namespace kt::cuda
