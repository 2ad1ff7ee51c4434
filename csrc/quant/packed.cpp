#include "quant/packed.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/checked.h"
#include "base/half.h"
#include "base/os_team.h"
#include "quant/formats.h"
#include "quant/quantize.h"

namespace kt::quant {
namespace {

// A tile of codes, a byte each, stays in the first-level cache; its rows are as many as a cache line
// of words along rows has (kGptq: four lines, kAwq: half of one), its columns whole blocks.
constexpr size_t kTileRows = 64, kTileCols = 64;
constexpr int kAwqNibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};  // where value i of a word lies
constexpr int kBlock = 32;                               // values of q4_0, q4_1, q8_0

uint32_t word_at(std::span<const uint8_t> words, size_t index) {
  uint32_t word;
  std::memcpy(&word, words.data() + 4 * index, sizeof word);
  return word;
}

// The eight nibbles of a word as eight bytes, lowest first.
uint64_t spread(uint32_t word) {
  uint64_t x = word;
  x = (x | x << 16) & 0x0000FFFF0000FFFFull;
  x = (x | x << 8) & 0x00FF00FF00FF00FFull;
  return (x | x << 4) & 0x0F0F0F0F0F0F0F0Full;
}

size_t words_for(size_t values, int bits) { return (values * bits + 31) / 32; }

// Reads a matrix by rows as it should be read: `rows` says where each is stored.
class Reader {
 public:
  explicit Reader(const Packed& m)
      : m_(m), per_word_(32 / m.bits), words_(words_for(along_rows() ? m.n : m.k, m.bits)) {}

  size_t stored(size_t row) const { return m_.rows.empty() ? row : m_.rows[row]; }

  // Codes of rows first .. first + rows, columns column .. column + cols (a multiple of 8 from a
  // multiple of 8, or up to k) -> out [rows, stride].
  void codes(size_t first, size_t rows, size_t column, size_t cols, uint8_t* out,
             size_t stride) const {
    if (m_.layout == Packed::Layout::kAwq) return awq_codes(first, rows, column, cols, out, stride);
    const size_t from = column / per_word_, count = (cols + per_word_ - 1) / per_word_;
    for (size_t w = 0; w < count; ++w) {
      const size_t at = w * per_word_, held = std::min<size_t>(per_word_, cols - at);
      for (size_t r = 0; r < rows; ++r) {
        const size_t row = stored(first + r);
        const bool by_row = m_.layout == Packed::Layout::kRows;
        const uint32_t word =
            word_at(m_.codes, by_row ? row * words_ + from + w : (from + w) * m_.n + row);
        if (m_.bits == 4) {
          const uint64_t bytes = spread(word);
          std::memcpy(out + r * stride + at, &bytes, held);
        } else {
          std::memcpy(out + r * stride + at, &word, held);
        }
      }
    }
  }

  float scale(size_t row, size_t group) const {
    const bool by_row = m_.layout == Packed::Layout::kRows;
    const size_t at = by_row ? stored(row) * m_.groups + group : group * m_.n + stored(row);
    float value;
    if (m_.scale_type == Packed::Scale::kF32) {
      std::memcpy(&value, m_.scales.data() + 4 * at, sizeof value);
    } else {
      uint16_t bits;
      std::memcpy(&bits, m_.scales.data() + 2 * at, sizeof bits);
      value = m_.scale_type == Packed::Scale::kF16 ? half_to_float(bits) : bf16_to_float(bits);
    }
    KT_CHECK_FORMAT(std::isfinite(value), "the scale of row ", stored(row), ", group ", group,
                    " is ", value);
    return value;
  }

  int zero(size_t row, size_t group) const {
    if (m_.zeros.empty()) return 1 << (m_.bits - 1);
    const size_t at = stored(row), word = at / per_word_, place = at % per_word_;
    if (m_.layout == Packed::Layout::kRows) return field(word * m_.groups + group, place);
    const size_t words = words_for(m_.n, m_.bits);
    const bool awq = m_.layout == Packed::Layout::kAwq;
    return field(group * words + word, awq ? kAwqNibble[place] : place);
  }

 private:
  bool along_rows() const { return m_.layout == Packed::Layout::kAwq; }

  int field(size_t word, size_t place) const {
    const uint32_t stored = word_at(m_.zeros, word) >> (m_.bits * place);
    return static_cast<int>((stored + m_.zero_offset) & ((1u << m_.bits) - 1));
  }

  void awq_codes(size_t first, size_t rows, size_t column, size_t cols, uint8_t* out,
                 size_t stride) const {
    size_t word[kTileRows];
    uint8_t shift[kTileRows];
    for (size_t done = 0; done < rows; done += kTileRows, out += kTileRows * stride) {
      const size_t count = std::min(kTileRows, rows - done);
      for (size_t r = 0; r < count; ++r) {
        const size_t row = stored(first + done + r);
        word[r] = row / 8;
        shift[r] = static_cast<uint8_t>(4 * kAwqNibble[row % 8]);
      }
      for (size_t c = 0; c < cols; ++c) {
        for (size_t r = 0; r < count; ++r) {
          const uint32_t w = word_at(m_.codes, (column + c) * words_ + word[r]);
          out[r * stride + c] = static_cast<uint8_t>(w >> shift[r] & 15);
        }
      }
    }
  }

  const Packed& m_;
  size_t per_word_;
  size_t words_;  // in a line of codes
};

// Codes of one block, their sums for the error.
struct Codes {
  const uint8_t* u;
  int sum = 0, squares = 0, least = 255, most = 0;

  explicit Codes(const uint8_t* codes) : u(codes) {
    for (int i = 0; i < kBlock; ++i) {
      sum += u[i];
      squares += u[i] * u[i];
      least = std::min<int>(least, u[i]);
      most = std::max<int>(most, u[i]);
    }
  }
  // Sum over the block of (a code + b)^2.
  double sum_of(double a, double b) const {
    return a * a * squares + 2 * a * b * sum + b * b * kBlock;
  }
};

void put_nibbles(const uint8_t* u, uint8_t* qs) {
  for (int j = 0; j < kBlock / 2; ++j) qs[j] = static_cast<uint8_t>(u[j] | u[j + kBlock / 2] << 4);
}

// What blocks hold instead of scale * code - scale * zero: slope * code + offset.
struct Held {
  float slope, offset;
  size_t lost;  // values that the block cannot have
};

Held put(Q4_0::Block& block, const Codes& codes, float scale, int zero) {
  block.d = float_to_half(scale);
  put_nibbles(codes.u, block.qs);
  const float d = half_to_float(block.d);
  return {d, -8 * d, zero == 8 ? size_t{0} : size_t{kBlock}};
}

Held put(Q4_1::Block& block, const Codes& codes, float scale, int zero) {
  block.d = float_to_half(scale);
  block.m = float_to_half(-scale * static_cast<float>(zero));
  put_nibbles(codes.u, block.qs);
  return {half_to_float(block.d), half_to_float(block.m), 0};
}

Held put(Q8_0::Block& block, const Codes& codes, float scale, int zero) {
  block.d = float_to_half(scale);
  size_t lost = 0;
  for (int i = 0; i < kBlock; ++i) {
    const int q = codes.u[i] - zero;
    lost += q < -128 || q > 127;
    block.qs[i] = static_cast<int8_t>(std::clamp(q, -128, 127));
  }
  const float d = half_to_float(block.d);
  return {d, -d * static_cast<float>(zero), lost};
}

// Rows first .. first + rows, at most kTileRows of them.
template <class F>
Requantized keep_rows(const Packed& m, size_t first, size_t rows, uint8_t* out) {
  const Reader reader(m);
  const size_t group = m.k / m.groups, blocks = m.k / kBlock;
  uint8_t codes[kTileRows * kTileCols];
  Requantized result;
  for (size_t column = 0; column < m.k; column += kTileCols) {
    const size_t cols = std::min(kTileCols, m.k - column);
    reader.codes(first, rows, column, cols, codes, kTileCols);
    for (size_t r = 0; r < rows; ++r) {
      for (size_t at = 0; at < cols; at += kBlock) {
        const float scale = reader.scale(first + r, (column + at) / group);
        const int zero = reader.zero(first + r, (column + at) / group);
        const Codes block_codes(codes + r * kTileCols + at);
        typename F::Block block;
        const Held held = put(block, block_codes, scale, zero);
        std::memcpy(out + (r * blocks + (column + at) / kBlock) * sizeof block, &block,
                    sizeof block);
        const bool fits = std::isfinite(held.slope) && std::isfinite(held.offset);
        result.out_of_range += fits ? held.lost : kBlock;
        const double s = scale, offset = -s * zero;
        if (fits) result.error += block_codes.sum_of(held.slope - s, held.offset - offset);
        result.power += block_codes.sum_of(s, offset);
        const int far = std::max(std::abs(block_codes.least - zero), block_codes.most - zero);
        result.largest = std::max(result.largest, std::fabs(scale) * static_cast<float>(far));
      }
    }
  }
  return result;
}

template <class F>
Requantized keep_as(const Packed& m, size_t first, size_t count, std::span<uint8_t> out,
                    int threads) {
  const size_t bytes = m.k / kBlock * sizeof(typename F::Block);
  const size_t pieces = (count + kTileRows - 1) / kTileRows;
  const size_t team = std::clamp<size_t>(std::max(threads, 1), 1, std::max<size_t>(pieces, 1));
  os::Pieces left(pieces);
  std::vector<Requantized> results(team);
  os::share(left, team, [&](size_t self) {
    for (size_t i; left.take(i);) {
      const size_t at = i * kTileRows, rows = std::min(kTileRows, count - at);
      results[self] += keep_rows<F>(m, first + at, rows, out.data() + at * bytes);
    }
  });
  Requantized sum;
  for (const Requantized& one : results) sum += one;
  return sum;
}

void check_rows(const Packed& m, size_t first, size_t count) {
  KT_CHECK(first <= m.n && count <= m.n - first, "rows ", first, " .. ", first + count, " of ",
           m.n);
}

}  // namespace

void check_packed(const Packed& m) {
  using Layout = Packed::Layout;
  KT_CHECK(m.bits == 4 || (m.bits == 8 && m.layout != Layout::kAwq), "codes of ", m.bits, " bits");
  KT_CHECK(m.n > 0 && m.k > 0 && m.groups > 0, "a packed matrix of ", m.n, " x ", m.k, " in ",
           m.groups, " groups");
  KT_CHECK(m.n < size_t{1} << 31 && m.k < size_t{1} << 31, "a packed matrix of ", m.n, " x ", m.k);
  KT_CHECK(m.groups <= m.k, m.groups, " groups of ", m.k, " columns");
  KT_CHECK(!m.group_of.empty() || m.k % m.groups == 0, m.groups, " groups do not divide ", m.k,
           " columns");
  const auto expect = [](std::span<const uint8_t> bytes, uint64_t lines, uint64_t line,
                         const char* what) {
    KT_CHECK(bytes.size() == checked_mul(lines, line, what), what, ": ", bytes.size(),
             " bytes, the matrix needs ", lines, " x ", line);
  };
  const size_t row_words = words_for(m.k, m.bits), column_words = words_for(m.n, m.bits);
  switch (m.layout) {
    case Layout::kRows: expect(m.codes, m.n, 4 * row_words, "codes"); break;
    case Layout::kGptq: expect(m.codes, row_words, 4 * m.n, "codes"); break;
    case Layout::kAwq: expect(m.codes, m.k, 4 * column_words, "codes"); break;
  }
  if (!m.zeros.empty()) expect(m.zeros, m.groups, 4 * column_words, "zero points");
  expect(m.scales, m.groups, (m.scale_type == Packed::Scale::kF32 ? 4 : 2) * m.n, "scales");
  KT_CHECK(m.group_of.empty() || m.group_of.size() == m.k, m.group_of.size(), " groups for ", m.k,
           " columns");
  for (size_t i = 0; i < m.group_of.size(); ++i) {
    KT_CHECK(m.group_of[i] >= 0 && static_cast<size_t>(m.group_of[i]) < m.groups, "column ", i,
             " is in group ", m.group_of[i], " of ", m.groups);
  }
  KT_CHECK(m.rows.empty() || m.rows.size() == m.n, m.rows.size(), " places for ", m.n, " rows");
  for (const int32_t row : m.rows) {
    KT_CHECK(row >= 0 && static_cast<size_t>(row) < m.n, "row ", row, " of ", m.n);
  }
}

bool can_keep_codes(const Packed& m, int gguf_id) {
  const bool has_runs = m.group_of.empty() && m.k / m.groups % kBlock == 0;
  const bool is_nibbles = gguf_id == Q4_0::kGgufId || gguf_id == Q4_1::kGgufId;
  return has_runs && ((is_nibbles && m.bits == 4) || gguf_id == Q8_0::kGgufId);
}

Requantized keep_codes(const Packed& m, size_t first, size_t count, int gguf_id,
                       std::span<uint8_t> out, int threads) {
  KT_CHECK(can_keep_codes(m, gguf_id), "type ", gguf_id, " cannot have codes of ", m.bits,
           " bits in groups of ", m.k / m.groups);
  check_rows(m, first, count);
  KT_CHECK(out.size() == count * row_bytes(gguf_id, m.k), "room for ", out.size(),
           " bytes, the rows take ", count * row_bytes(gguf_id, m.k));
  if (gguf_id == Q4_0::kGgufId) return keep_as<Q4_0>(m, first, count, out, threads);
  if (gguf_id == Q4_1::kGgufId) return keep_as<Q4_1>(m, first, count, out, threads);
  return keep_as<Q8_0>(m, first, count, out, threads);
}

void packed_to_floats(const Packed& m, size_t first, size_t count, std::span<float> out) {
  check_rows(m, first, count);
  KT_CHECK(out.size() == count * m.k, "room for ", out.size(), " values of ", count * m.k);
  const Reader reader(m);
  const size_t group = m.group_of.empty() ? m.k / m.groups : 0;
  std::vector<uint8_t> codes(std::min(kTileRows, count) * m.k);
  std::vector<float> scales(m.groups);
  std::vector<int> zeros(m.groups);
  for (size_t done = 0; done < count; done += kTileRows) {
    const size_t rows = std::min(kTileRows, count - done);
    reader.codes(first + done, rows, 0, m.k, codes.data(), m.k);
    for (size_t r = 0; r < rows; ++r) {
      for (size_t g = 0; g < m.groups; ++g) {
        scales[g] = reader.scale(first + done + r, g);
        zeros[g] = reader.zero(first + done + r, g);
      }
      const uint8_t* u = codes.data() + r * m.k;
      float* value = out.data() + (done + r) * m.k;
      if (group == 0) {
        for (size_t i = 0; i < m.k; ++i) {
          const int32_t g = m.group_of[i];
          value[i] = scales[g] * static_cast<float>(u[i] - zeros[g]);
        }
        continue;
      }
      for (size_t g = 0, i = 0; g < m.groups; ++g) {
        for (const size_t end = i + group; i < end; ++i) {
          value[i] = scales[g] * static_cast<float>(u[i] - zeros[g]);
        }
      }
    }
  }
}

}  // namespace kt::quant
