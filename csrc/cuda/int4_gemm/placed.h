// How a card keeps an int4 matrix: weights, scales and, unless it is symmetric, offsets of pack.h,
// one behind the other. Beside matrices with a GGUF type such a one has a type below zero.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <span>
#include <vector>

#include "cuda/common/types.h"
#include "cuda/int4_gemm/pack.h"

namespace kt::cuda {

struct PlacedInt4 {
  int n, k, group;  // group: 32, 64 or 128 values share a scale
  bool has_offsets;

  size_t rows() const { return round_up(size_t(n), size_t{64}); }  // strips are whole
  size_t weight_bytes() const { return rows() * k / 2; }
  size_t scale_bytes() const { return rows() * (k / group) * sizeof(uint16_t); }
  size_t bytes() const { return weight_bytes() + (has_offsets ? 2 : 1) * scale_bytes(); }
  /// For `type` of what names a matrix; the inverse of placed_int4().
  int type() const { return -(group + (has_offsets ? 1 : 0)); }
  /// The parameters' part that says where weights at `at` are.
  void set(Int4GemmParams& params, const uint8_t* at) const;
};

inline bool is_int4(int type) { return type < 0; }
/// Throws InvalidArgument for a type or a shape that does not exist.
PlacedInt4 placed_int4(int type, int n, int k);

struct ConvertedInt4 {
  PlacedInt4 matrix;
  std::vector<uint8_t> bytes;  // matrix.bytes() of them
  Int4Error error;
};
/// From blocks of a GGUF type, [n, k], by up to `threads` threads. group 0: Q4_0, Q4_1 and Q4_K
/// keep their codes, with a scale per 32 values; others are rounded, 64 symmetric values to a
/// scale. group 32, 64, 128: rounded in these groups, of 32 with offsets; where the format has such
/// groups its codes are kept. Throws InvalidArgument for shapes that do not fit and values that are
/// not finite, Unsupported for an unknown format.
ConvertedInt4 convert_int4(std::span<const uint8_t> blocks, int gguf_id, int n, int k, int group,
                           int threads);

}  // namespace kt::cuda
