#include "quant/packed.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/checked.h"
#include "base/error.h"
#include "quant/packed_reader.h"

namespace kt::quant {
namespace {

// The eight nibbles of a word as eight bytes, lowest first.
void spread(const uint8_t* word, uint8_t* out) {
  uint64_t x = 0;
  std::memcpy(&x, word, 4);
  x = (x | x << 16) & 0x0000FFFF0000FFFFull;
  x = (x | x << 8) & 0x00FF00FF00FF00FFull;
  x = (x | x << 4) & 0x0F0F0F0F0F0F0F0Full;
  std::memcpy(out, &x, 8);
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
    case Layout::kRows:
      expect(m.codes, m.n, 4 * row_words, "codes");
      break;
    case Layout::kGptq:
      expect(m.codes, row_words, 4 * m.n, "codes");
      break;
    case Layout::kAwq:
      expect(m.codes, m.k, 4 * column_words, "codes");
      break;
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

void packed_to_floats(const Packed& m, size_t first, size_t count, std::span<float> out) {
  KT_CHECK(first <= m.n && count <= m.n - first, "rows ", first, " .. ", first + count, " of ",
           m.n);
  KT_CHECK(out.size() == count * m.k, "room for ", out.size(), " values of ", count * m.k);
  constexpr size_t kRows = 32;  // half of a cache line of AWQ's words
  const PackedReader reader(m);
  const size_t group = m.group_of.empty() ? m.k / m.groups : 0, words = words_for(m.k, m.bits);
  const size_t per_word = 32 / static_cast<size_t>(m.bits);
  std::vector<uint8_t> scratch(PackedReader::scratch_bytes(std::min(kRows, count), words));
  std::vector<uint8_t> codes(words * per_word);
  std::vector<float> scales(m.groups);
  std::vector<int> zeros(m.groups);
  for (size_t done = 0; done < count; done += kRows) {
    const uint8_t* line[kRows];
    const size_t rows = std::min(kRows, count - done);
    reader.lines(first + done, rows, 0, words, scratch.data(), line);
    for (size_t r = 0; r < rows; ++r) {
      if (m.bits == 8) {
        std::memcpy(codes.data(), line[r], codes.size());
      } else {
        for (size_t i = 0; i < words; ++i) spread(line[r] + 4 * i, codes.data() + 8 * i);
      }
      reader.scales(first + done + r, 1, 0, m.groups, scales.data());
      for (size_t g = 0; g < m.groups; ++g) zeros[g] = reader.zero(first + done + r, g);
      const uint8_t* u = codes.data();
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
