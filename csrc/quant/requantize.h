// A matrix in one format becomes the same matrix in another, with the error that cost: the tool
// behind `ktransformers quantize` and behind loading a checkpoint that is not quantised yet.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace kt::quant {

struct Packed;  // quant/packed.h

/// Rows of a matrix as a checkpoint has them.
struct Source {
  static constexpr int kFp8 = -1;     // E4M3 (finite, NaN = 0x7F) with one scale per square block
  static constexpr int kPacked = -2;  // integer codes in words; `bytes` is empty
  int gguf_id = 0;                    // or kFp8, kPacked
  std::span<const uint8_t> bytes;  // n rows
  std::span<const float> scales;   // kFp8: [ceil(n / block), ceil(k / block)], factors of the values
  size_t block = 128;              // kFp8: rows and columns that share a scale
  const Packed* packed = nullptr;  // kPacked: checked, of k columns
  size_t first = 0;                // kPacked: the row of it that is row 0 here
};

/// What the rows become.
struct Target {
  int gguf_id = 0;
  bool group128 = false;  // q4_0 only: one symmetric scale for 128 values, as GPU kernels have it
};

/// What became of the values; the sums are over all of them.
struct Requantized {
  double error = 0;        // sum of (value - what was written)^2
  double power = 0;        // sum of value^2
  float largest = 0;       // largest |value|
  size_t not_finite = 0;   // values of the source that are NaN or infinite
  size_t out_of_range = 0; // values the target cannot hold, and what was written that is not finite

  Requantized& operator+=(const Requantized& other);
};

/// Rows [n, k] of `source` -> n rows of `target` in `out`, by up to `threads` threads; scratch is a
/// few rows per thread. Where `not_finite` or `out_of_range` comes back above zero, `out` holds
/// zeros for the rows concerned and must not be used.
///
///   importance  as in quantize(); empty: all columns count the same
///
/// Throws InvalidArgument for sizes that do not fit, Unsupported for a target nothing can write.
Requantized requantize(const Source& source, size_t n, size_t k, const Target& target,
                       std::span<const float> importance, std::span<uint8_t> out, int threads);

/// Rows [n, k] of `source` as floats.
void to_floats(const Source& source, size_t n, size_t k, std::span<float> out);

}  // namespace kt::quant
