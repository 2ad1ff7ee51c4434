// Whole arrays of blocks to and from float. Baseline code: the slow truth, and offline tools.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace kt::quant {

/// Number of values in `bytes` bytes of the format; throws InvalidArgument if that is no whole
/// number of blocks, Unsupported for an unknown id.
size_t value_count(int gguf_id, size_t bytes);

/// Blocks -> floats. `out.size()` must equal value_count(gguf_id, blocks.size()).
void dequantize(int gguf_id, std::span<const uint8_t> blocks, std::span<float> out);

}  // namespace kt::quant
