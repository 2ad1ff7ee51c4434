// 4-bit weights from elsewhere to the order the kernel reads.
//
// value[n][k] = scale[n][k / group] * (q - 8) + offset[n][k / group], q in 0..15
//
// A strip is 64 columns (rows of W), a step 16 values of k. weights: [strip][step][lane][16 bytes];
// word j of lane l holds columns 16 j + l / 4 (codes 0, 4, 1, 5: k = 2 (l % 4) + 0, 1, 8, 9) and
// 16 j + 8 + l / 4 (codes 2, 6, 3, 7: the same k), code c in bits 4 c ... 4 c + 3.
// scales, offsets: [k / group][strip][column % 8][column / 8] in 16-bit floats.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cuda/int4_gemm/int4_gemm.h"

namespace kt::cuda {

/// Codes and affine scales, the common form of every 4-bit source.
struct Int4Matrix {
  int n = 0, k = 0, group = 0;
  std::vector<uint8_t> codes;  // [n, k], 0..15
  std::vector<float> scales;   // [n, k / group]
  std::vector<float> offsets;  // the same, or empty: symmetric
  float value(int row, int column) const;
};

struct PackedInt4 {
  int n = 0, k = 0, group = 0;
  FloatType type = FloatType::kF16;
  std::vector<uint8_t> weights;
  std::vector<uint16_t> scales, offsets;  // offsets empty: symmetric
};

/// Shuffles for the kernel; missing columns of the last strip are zero. Throws InvalidArgument for
/// shapes that do not fit or a scale beyond the range of `type`.
PackedInt4 pack_int4(const Int4Matrix& matrix, FloatType type);

/// The inverse, with the scales as the kernel sees them.
Int4Matrix unpack_int4(const PackedInt4& packed);

/// Rounds floats, [n, k], to 4 bits: per group the scale (and offset, unless symmetric) with the
/// least squared error of a small search around the range.
Int4Matrix quantise_int4(std::span<const float> values, int n, int k, int group, bool symmetric);

/// From blocks of a GGUF file, [n, k]: Q4_0 and Q4_1 in groups of 32 and Q4_K in groups of 32 with
/// offsets keep their codes; any other wish (group 64 or 128, symmetric Q4_K, another format) is
/// rounded again. `error` receives what the conversion adds, scales' rounding to `type` included.
/// Throws Unsupported for an unknown format.
struct Int4Error {
  double squared = 0, power = 0;  // sums over the values: of the differences, of the values
  double relative() const { return power > 0 ? squared / power : 0; }
};
Int4Matrix int4_from_gguf(std::span<const uint8_t> blocks, int gguf_id, int n, int k, int group,
                          bool symmetric, FloatType type, Int4Error* error);

}  // namespace kt::cuda
