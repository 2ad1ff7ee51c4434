// Whole matrices of floats to blocks: an offline tool, baseline code. Callers split rows over
// threads as they like.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace kt::quant {

/// Whether quantize() can write the format; throws Unsupported for an unknown id.
bool can_quantize(int gguf_id);

/// Bytes of a row of k values; throws InvalidArgument if k is no whole number of blocks.
size_t row_bytes(int gguf_id, size_t k);

/// Rows of k floats -> rows of blocks with, block by block, little weighted squared error.
///
///   x           [n, k] finite, |x| <= 65504 for formats with blocks
///   importance  [k] weights >= 0 of the squared errors of a column, or empty: all the same. What
///               llama.cpp's imatrix files hold: mean squares of the activations.
///   out         n * row_bytes(gguf_id, k) bytes
///
/// Throws Unsupported for a format that has no quantizer, InvalidArgument for values that do not
/// fit, with their row and column.
void quantize(int gguf_id, std::span<const float> x, size_t k, std::span<const float> importance,
              std::span<uint8_t> out);

}  // namespace kt::quant
