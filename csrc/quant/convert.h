// Whole arrays of blocks to floats, to their integer view, and to R16 and back. Baseline code: the
// slow truth that kernels are checked against, and offline tools.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kt::quant {

/// Number of values in `bytes` bytes of the format; throws InvalidArgument if that is no whole
/// number of blocks, Unsupported for an unknown id.
size_t value_count(int gguf_id, size_t bytes);

/// Blocks -> floats. `out.size()` must equal value_count(gguf_id, blocks.size()).
void dequantize(int gguf_id, std::span<const uint8_t> blocks, std::span<float> out);

/// The integer view of an array of blocks (see formats.h).
struct IntegerView {
  std::vector<uint8_t> u;    // [values]
  std::vector<float> scale;  // [values / group]
  std::vector<float> min;    // [values / group], empty where the format has no minima
  int offset = 0;
};

/// value[i] = scale[i / group] * (u[i] - offset) + min[i / group]; throws Unsupported for formats
/// that have no integer view (f32, f16, bf16).
IntegerView integer_view(int gguf_id, std::span<const uint8_t> blocks);

/// Bytes of a matrix [rows, ...] in R16, whose blocks take `bytes`: `rows` rounded up to 16.
size_t r16_bytes(int gguf_id, size_t bytes, size_t rows);

/// A matrix of `rows` rows of blocks -> R16 (see r16.h). `out.size()` must equal r16_bytes(...).
void r16_pack(int gguf_id, std::span<const uint8_t> blocks, size_t rows, std::span<uint8_t> out);

/// The inverse: `out` takes the `rows` rows of blocks again.
void r16_unpack(int gguf_id, std::span<const uint8_t> records, size_t rows,
                std::span<uint8_t> out);

}  // namespace kt::quant
