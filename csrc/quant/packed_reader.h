// Reads a packed matrix by rows, whatever its layout: the words of a row one after another, as
// kRows has them, and what a code is worth.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "quant/packed.h"

namespace kt::quant {

/// Words that `values` codes take.
inline size_t words_for(size_t values, int bits) { return (values * bits + 31) / 32; }

class PackedReader {
 public:
  // Rows that line() and scales() are asked for at a time. A line of words along rows (kGptq, kAwq)
  // is then read a cache line or more at a time.
  static constexpr size_t kRows = 128;

  explicit PackedReader(const Packed& matrix);

  size_t stored(size_t row) const { return m_.rows.empty() ? row : m_.rows[row]; }

  /// Words from .. from + words of rows first .. first + rows (at most kRows) -> line[rows], each
  /// pointing at a row's words: in the file, or in scratch [rows, 4 words].
  void lines(size_t first, size_t rows, size_t from, size_t words, uint8_t* scratch,
             const uint8_t** line) const;

  /// Bytes of scratch that lines() needs.
  static constexpr size_t scratch_bytes(size_t rows, size_t words) {
    return rows * 4 * ((words + 3) / 4 * 4);
  }

  /// The scales of a group, of rows first .. first + rows, or of a row, groups group .. group +
  /// groups, one of the two being 1 -> out. Throws FormatError for one that is not finite.
  void scales(size_t first, size_t rows, size_t group, size_t groups, float* out) const;

  int zero(size_t row, size_t group) const {
    if (m_.zeros.empty()) return 1 << (m_.bits - 1);
    const size_t at = stored(row), word = at >> word_shift_, place = at & ((1u << word_shift_) - 1);
    switch (m_.layout) {
      case Packed::Layout::kRows:
        return field(word * m_.groups + group, place);
      case Packed::Layout::kGptq:
        return field(group * row_words_ + word, place);
      case Packed::Layout::kAwq:
        break;
    }
    return field(group * row_words_ + word, place / 2 + 4 * (place % 2));  // 0 4 1 5 2 6 3 7
  }

 private:
  int field(size_t word, size_t place) const {
    uint32_t stored;
    std::memcpy(&stored, m_.zeros.data() + 4 * word, sizeof stored);
    stored >>= m_.bits * place;
    return static_cast<int>((stored + m_.zero_offset) & ((1u << m_.bits) - 1));
  }
  void gptq_lines(size_t first, size_t rows, size_t from, size_t words, uint8_t* out) const;
  void awq_lines(size_t first, size_t rows, size_t from, size_t words, uint8_t* out) const;

  const Packed& m_;
  int word_shift_;       // 2^shift codes in a word
  size_t column_words_;  // for k codes
  size_t row_words_;     // for n codes
};

}  // namespace kt::quant
