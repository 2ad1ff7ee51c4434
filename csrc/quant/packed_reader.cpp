#include "quant/packed_reader.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/half.h"
#include "quant/vectors.h"

namespace kt::quant {
namespace {

constexpr size_t kBand = 32;  // rows of AWQ words that are transposed at a time: 16 bytes of a line
constexpr size_t kSquare = 32;  // columns of it: 16 bytes of each row

// 16-bit scales as floats. The loops are for vectors, hence without branches: where something is
// not a normal number, all are done again.
void widen(const uint16_t* bits, size_t count, Packed::Scale type, float* out) {
  if (type == Packed::Scale::kBf16) {
    for (size_t i = 0; i < count; ++i) out[i] = bf16_to_float(bits[i]);
    return;
  }
  bool has_others = false;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t h = bits[i], exponent = h & 0x7C00u;
    has_others |= exponent == 0 || exponent == 0x7C00u;
    out[i] = bits_to_float((h & 0x8000u) << 16 | (((h & 0x7FFFu) << 13) + 0x38000000u));
  }
  if (!has_others) return;
  for (size_t i = 0; i < count; ++i) out[i] = half_to_float(bits[i]);
}

// A square of AWQ words, [columns, 4], lines `line_bytes` apart -> out [32 rows, stride], 16 bytes
// each. `bytes` of a line are there, the others are taken as zero.
void turn_awq(const uint8_t* words, size_t columns, size_t line_bytes, size_t bytes, uint8_t* out,
              size_t stride) {
  const auto line = [&](size_t c) {
    if (c >= columns) return Bytes16{};
    if (bytes == 16) return load16<Bytes16>(words + c * line_bytes);
    Bytes16 v{};
    std::memcpy(&v, words + c * line_bytes, bytes);
    return v;
  };
  // Byte b of a word has nibbles 2 b and 2 b + 1. Two columns make the bytes of a row.
  Bytes16 low[kSquare / 2], high[kSquare / 2];
  for (size_t j = 0; j < kSquare / 2; ++j) {
    const Bytes16 p = line(2 * j), q = line(2 * j + 1);
    low[j] = (p & 15) | (Bytes16)((Words8)(q & 15) << 4);
    high[j] = (Bytes16)((Words8)(p & 0xF0) >> 4) | (q & 0xF0);
  }
  transpose(low);
  transpose(high);
  constexpr size_t kLowRow[4] = {0, 4, 1, 5}, kHighRow[4] = {2, 6, 3, 7};
  for (size_t i = 0; i < 16; ++i) {
    const size_t row = i / 4 * 8;
    store16(out + (row + kLowRow[i % 4]) * stride, low[i]);
    store16(out + (row + kHighRow[i % 4]) * stride, high[i]);
  }
}

}  // namespace

PackedReader::PackedReader(const Packed& m)
    : m_(m),
      word_shift_(m.bits == 4 ? 3 : 2),
      column_words_(words_for(m.k, m.bits)),
      row_words_(words_for(m.n, m.bits)) {}

void PackedReader::lines(size_t first, size_t rows, size_t from, size_t words, uint8_t* scratch,
                         const uint8_t** line) const {
  if (m_.layout == Packed::Layout::kRows) {
    for (size_t r = 0; r < rows; ++r) {
      line[r] = m_.codes.data() + 4 * (stored(first + r) * column_words_ + from);
    }
    return;
  }
  for (size_t r = 0; r < rows; ++r) line[r] = scratch + r * scratch_bytes(1, words);
  if (m_.layout == Packed::Layout::kGptq) return gptq_lines(first, rows, from, words, scratch);
  awq_lines(first, rows, from, words, scratch);
}

void PackedReader::gptq_lines(size_t first, size_t rows, size_t from, size_t words,
                              uint8_t* out) const {
  const size_t stride = scratch_bytes(1, words), line = 4 * m_.n;
  for (size_t w = 0; w < words; w += 4) {
    const uint8_t* at = m_.codes.data() + (from + w) * line;
    size_t r = 0;
    if (m_.rows.empty() && w + 4 <= words) {
      for (; r + 4 <= rows; r += 4) {
        Ints4 square[4];
        for (size_t i = 0; i < 4; ++i) {
          square[i] = load16<Ints4>(at + i * line + 4 * (first + r));
        }
        transpose(square);
        for (size_t i = 0; i < 4; ++i) store16(out + (r + i) * stride + 4 * w, square[i]);
      }
    }
    for (; r < rows; ++r) {
      const uint8_t* word = at + 4 * stored(first + r);
      for (size_t i = 0; i < std::min<size_t>(4, words - w); ++i) {
        std::memcpy(out + r * stride + 4 * (w + i), word + i * line, 4);
      }
    }
  }
}

void PackedReader::awq_lines(size_t first, size_t rows, size_t from, size_t words,
                             uint8_t* out) const {
  const size_t stride = scratch_bytes(1, words), line = 4 * row_words_;
  uint8_t turned[kBand * kSquare / 2];
  bool is_done[kRows] = {};
  for (size_t r = 0; r < rows; ++r) {
    if (is_done[r]) continue;
    const size_t band = stored(first + r) / kBand;
    // Which of the rows lie in it: mostly all of it in order, which need no second copy.
    size_t row[kRows], count = 0;
    bool in_order = true;
    for (size_t other = r; other < rows; ++other) {
      const size_t at = stored(first + other);
      if (at / kBand != band) continue;
      in_order &= at % kBand == count && other == r + count;
      row[count++] = other;
      is_done[other] = true;
    }
    in_order &= count == kBand;
    for (size_t w = 0; w < words; w += kSquare / 8) {
      const size_t column = 8 * (from + w);
      uint8_t* to = in_order ? out + r * stride + 4 * w : turned;
      turn_awq(m_.codes.data() + column * line + band * kBand / 2, std::min(kSquare, m_.k - column),
               line, std::min<size_t>(16, line - band * 16), to, in_order ? stride : kSquare / 2);
      for (size_t i = 0; !in_order && i < count; ++i) {
        std::memcpy(out + row[i] * stride + 4 * w,
                    turned + stored(first + row[i]) % kBand * kSquare / 2, kSquare / 2);
      }
    }
  }
}

void PackedReader::scales(size_t first, size_t rows, size_t group, size_t groups,
                          float* out) const {
  const bool by_row = m_.layout == Packed::Layout::kRows;
  const size_t count = rows * groups, bytes = m_.scale_type == Packed::Scale::kF32 ? 4 : 2;
  const auto index = [&](size_t i) {
    const size_t row = stored(first + (groups == 1 ? i : 0)), g = group + (groups == 1 ? 0 : i);
    return by_row ? row * m_.groups + g : g * m_.n + row;
  };
  const bool is_run = by_row ? rows == 1 : groups == 1 && m_.rows.empty();
  uint16_t halves[kRows];
  for (size_t done = 0; done < count; done += kRows) {
    const size_t some = std::min(kRows, count - done);
    void* to = bytes == 4 ? static_cast<void*>(out + done) : halves;
    if (is_run) {
      std::memcpy(to, m_.scales.data() + bytes * index(done), bytes * some);
    } else {
      for (size_t i = 0; i < some; ++i) {
        std::memcpy(static_cast<uint8_t*>(to) + bytes * i,
                    m_.scales.data() + bytes * index(done + i), bytes);
      }
    }
    if (bytes == 2) widen(halves, some, m_.scale_type, out + done);
  }
  bool is_finite = true;
  for (size_t i = 0; i < count; ++i)
    is_finite &= (float_to_bits(out[i]) & 0x7F800000u) != 0x7F800000u;
  for (size_t i = 0; !is_finite && i < count; ++i) {
    KT_CHECK_FORMAT(std::isfinite(out[i]), "the scale of row ",
                    stored(first + (groups == 1 ? i : 0)), ", group ",
                    group + (groups == 1 ? 0 : i), " is ", out[i]);
  }
}

}  // namespace kt::quant
