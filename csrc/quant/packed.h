// Integer weights as checkpoints of 4 and 8 bits have them: codes packed into 32-bit words, a scale
// and perhaps a zero point per row and group of columns. value = scale * (code - zero).
//
//   layout  codes, words of 32 bits        zeros, words             scales         who writes it
//   kRows   [n, k/8], along columns        [n/8, groups], rows      [n, groups]    compressed-tensors
//   kGptq   [k/8, n], along columns        [groups, n/8], rows      [groups, n]    GPTQ
//   kAwq    [k, n/8], along rows           [groups, n/8], rows      [groups, n]    AutoAWQ "gemm"
//
// Value i of a word lies in bits 4 i .. 4 i + 3, for kAwq in nibble 0 4 1 5 2 6 3 7 [i]. With 8 bits
// a word holds four. Words at the end of a line that k or n do not fill are there in full.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "quant/requantize.h"

namespace kt::quant {

/// A packed matrix. Spans may be unaligned: they point into a mapped file.
struct Packed {
  enum class Layout : uint8_t { kRows, kGptq, kAwq };
  enum class Scale : uint8_t { kF16, kBf16, kF32 };
  Layout layout = Layout::kRows;
  Scale scale_type = Scale::kF16;
  int bits = 4;                       // or 8, but for kAwq
  int zero_offset = 0;                // added to a stored zero point; GPTQ's first format: 1
  size_t n = 0, k = 0;                // rows (outputs) and columns (inputs)
  size_t groups = 1;                  // of k / groups columns each
  std::span<const uint8_t> codes;     // words, as above
  std::span<const uint8_t> zeros;     // words; empty: every zero point is 2^(bits - 1)
  std::span<const uint8_t> scales;    // of scale_type
  std::span<const int32_t> group_of;  // [k] 0 .. groups - 1, where groups are not runs of columns
  std::span<const int32_t> rows;      // [n] where row i is stored; empty: at i
};

/// Throws InvalidArgument where sizes do not fit, or an index points outside.
void check_packed(const Packed& matrix);

/// Whether blocks of q4_0, q4_1 or q8_0 can have the codes of a matrix like this: groups that are
/// runs of whole blocks. What only the values tell, keep_codes() reports.
bool can_keep_codes(const Packed& matrix, int gguf_id);

/// Rows first .. first + count as blocks that hold the very codes, by up to `threads` threads:
///
///   q4_0  d = scale             for zero points of 8
///   q4_1  d = scale, m = -scale * zero
///   q8_0  d = scale, q = code - zero
///
/// The error returned is that of rounding scale and minimum to binary16. out_of_range counts values
/// the blocks cannot have: another zero point, a code past int8, a scale past binary16.
///
/// Throws FormatError naming row and group of a scale that is not finite, InvalidArgument for sizes.
Requantized keep_codes(const Packed& matrix, size_t first, size_t count, int gguf_id,
                       std::span<uint8_t> out, int threads);

/// Rows first .. first + count as floats [count, k]. Throws as keep_codes().
void packed_to_floats(const Packed& matrix, size_t first, size_t count, std::span<float> out);

}  // namespace kt::quant
