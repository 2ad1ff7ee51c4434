// Packed matrices of every layout, written here a value at a time as the formats are described, and
// read back: as the very codes in blocks, with their sums, and as floats. Shapes that fill no tile.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "quant/formats.h"
#include "quant/packed.h"
#include "quant/quantize.h"
#include "quant/requantize.h"

namespace kt::quant {
namespace {

using Layout = Packed::Layout;
using Scale = Packed::Scale;

struct Shape {
  Layout layout;
  int bits;
  size_t n, k, groups;
  bool has_zeros, is_permuted;
  Scale scale;
};

// The matrix a checkpoint has, row by row, and its packed form.
struct Stored {
  Shape shape;
  std::vector<int> code, zero;  // [n, k], [n, groups]; row i is where `rows` says
  std::vector<float> scale;     // [n, groups]
  std::vector<uint32_t> codes, zeros;
  std::vector<uint8_t> scales;
  std::vector<int32_t> rows;
  Packed packed;
};

// Puts a value into an array of words that are taken along rows or along columns.
void put(std::vector<uint32_t>& words, size_t word, size_t place, int bits, int value) {
  words.at(word) |= static_cast<uint32_t>(value) << (bits * place);
}

Stored store(const Shape& shape, unsigned seed) {
  const auto& [layout, bits, n, k, groups, has_zeros, is_permuted, type] = shape;
  Stored s{shape, {}, {}, {}, {}, {}, {}, {}, {}};
  std::mt19937 random(seed);
  const int most = (1 << bits) - 1;
  s.code.resize(n * k), s.zero.resize(n * groups), s.scale.resize(n * groups);
  for (int& v : s.code) v = static_cast<int>(random()) & most;
  for (int& v : s.zero) v = has_zeros ? static_cast<int>(random()) & most : 1 << (bits - 1);
  for (float& v : s.scale) v = 1e-3f * static_cast<float>(1 + random() % 1000);
  const size_t per = 32 / bits, in_row = (k + per - 1) / per, in_column = (n + per - 1) / per;
  const size_t awq_place[8] = {0, 4, 1, 5, 2, 6, 3, 7};
  s.codes.resize(layout == Layout::kRows   ? n * in_row
                 : layout == Layout::kGptq ? in_row * n
                                           : k * in_column);
  if (has_zeros) s.zeros.resize(in_column * groups);
  s.scales.resize(n * groups * (type == Scale::kF32 ? 4 : 2));
  const bool by_row = layout == Layout::kRows;
  for (size_t row = 0; row < n; ++row) {
    for (size_t i = 0; i < k; ++i) {
      const int value = s.code[row * k + i];
      switch (layout) {
        case Layout::kRows:
          put(s.codes, row * in_row + i / per, i % per, bits, value);
          break;
        case Layout::kGptq:
          put(s.codes, i / per * n + row, i % per, bits, value);
          break;
        case Layout::kAwq:
          put(s.codes, i * in_column + row / 8, awq_place[row % 8], 4, value);
          break;
      }
    }
    for (size_t g = 0; g < groups; ++g) {
      const size_t word = by_row ? row / per * groups + g : g * in_column + row / per;
      const size_t place = layout == Layout::kAwq ? awq_place[row % 8] : row % per;
      if (has_zeros) put(s.zeros, word, place, bits, s.zero[row * groups + g]);
      float& scale = s.scale[row * groups + g];
      uint8_t* at = s.scales.data();
      const size_t index = by_row ? row * groups + g : g * n + row;
      if (type == Scale::kF32) {
        std::memcpy(at + 4 * index, &scale, 4);
        continue;
      }
      const uint16_t half = type == Scale::kF16 ? float_to_half(scale) : float_to_bf16(scale);
      scale = type == Scale::kF16 ? half_to_float(half) : bf16_to_float(half);
      std::memcpy(at + 2 * index, &half, 2);
    }
  }
  if (is_permuted) {
    s.rows.resize(n);
    std::iota(s.rows.begin(), s.rows.end(), 0);
    std::shuffle(s.rows.begin(), s.rows.end(), random);
  }
  const auto bytes = [](const auto& v) {
    return std::span(reinterpret_cast<const uint8_t*>(v.data()), v.size() * sizeof v[0]);
  };
  s.packed = {layout,          type, bits,  0, n, k, groups, bytes(s.codes), bytes(s.zeros),
              bytes(s.scales), {},   s.rows};
  check_packed(s.packed);
  return s;
}

// What a block of each format says of value i: code and what slope and offset make of it.
struct Said {
  int code;
  float slope, offset;
};
Said said(const Q4_0::Block& b, size_t i, int) {
  const float d = half_to_float(b.d);
  return {i < 16 ? b.qs[i] & 15 : b.qs[i - 16] >> 4, d, -8 * d};
}
Said said(const Q4_1::Block& b, size_t i, int) {
  return {i < 16 ? b.qs[i] & 15 : b.qs[i - 16] >> 4, half_to_float(b.d), half_to_float(b.m)};
}
Said said(const Q8_0::Block& b, size_t i, int zero) {
  const float d = half_to_float(b.d);
  return {b.qs[i] + zero, d, -d * static_cast<float>(zero)};
}

template <class F>
void check_codes(const Stored& s, size_t first, size_t count, int threads) {
  const auto& [layout, bits, n, k, groups, has_zeros, is_permuted, type] = s.shape;
  SCOPED_TRACE(concat(F::kName, " layout ", int(layout), " bits ", bits, " n ", n, " k ", k,
                      " groups ", groups, " zeros ", has_zeros, " permuted ", is_permuted,
                      " scales ", int(type), " rows ", first, " + ", count));
  std::vector<typename F::Block> blocks(count * k / 32);
  const std::span<uint8_t> out{reinterpret_cast<uint8_t*>(blocks.data()),
                               count * row_bytes(F::kGgufId, k)};
  const Requantized found = keep_codes(s.packed, first, count, F::kGgufId, out, threads);
  Requantized wanted;
  for (size_t r = 0; r < count; ++r) {
    const size_t row = is_permuted ? s.rows[first + r] : first + r;
    for (size_t i = 0; i < k; ++i) {
      const size_t g = row * groups + i / (k / groups);
      const int code = s.code[row * k + i], zero = s.zero[g];
      const Said it = said(blocks[r * k / 32 + i / 32], i % 32, zero);
      const bool is_lost =
          F::kGgufId == 8 ? code - zero < -128 || code - zero > 127 : F::kGgufId == 2 && zero != 8;
      const bool fits = std::isfinite(it.slope) && std::isfinite(it.offset);
      if (F::kGgufId != 8 || !is_lost) {
        ASSERT_EQ(it.code, code) << "row " << row << " column " << i;
      }
      if (fits) {
        ASSERT_EQ(it.slope, half_to_float(float_to_half(s.scale[g])));
      }
      if (F::kHasMin && fits) {
        ASSERT_EQ(it.offset, half_to_float(float_to_half(-s.scale[g] * static_cast<float>(zero))));
      }
      const double value = double{s.scale[g]} * (code - zero);
      wanted.out_of_range += !fits || is_lost;
      wanted.power += value * value;
      wanted.largest = std::max(wanted.largest, std::fabs(static_cast<float>(value)));
      if (fits) wanted.error += std::pow(double{it.slope} * code + it.offset - value, 2);
    }
  }
  EXPECT_EQ(found.out_of_range, wanted.out_of_range);
  EXPECT_EQ(found.not_finite, 0u);
  EXPECT_FLOAT_EQ(found.largest, wanted.largest);
  EXPECT_NEAR(found.power, wanted.power, 1e-12 * wanted.power);
  EXPECT_NEAR(found.error, wanted.error, 1e-9 * wanted.error + 1e-15 * wanted.power);
}

void check_all(const Stored& s, size_t first, size_t count, int threads) {
  if (s.shape.bits == 4) check_codes<Q4_0>(s, first, count, threads);
  if (s.shape.bits == 4) check_codes<Q4_1>(s, first, count, threads);
  check_codes<Q8_0>(s, first, count, threads);
}

const std::pair<Layout, int> kKinds[] = {{Layout::kRows, 4},
                                         {Layout::kRows, 8},
                                         {Layout::kGptq, 4},
                                         {Layout::kGptq, 8},
                                         {Layout::kAwq, 4}};

TEST(Packed, BlocksHaveTheCodesOfEveryLayout) {
  struct Size {
    size_t n, k, groups;
  };
  unsigned seed = 0;
  for (const auto& [layout, bits] : kKinds) {
    // A row; rows that fill no vector, word, band or tile; groups of one block, several, all; the
    // 256 columns of a tile cut groups of 96; a row of more blocks than a tile has.
    for (const Size& size : {Size{1, 32, 1},
                             {7, 96, 3},
                             {8, 288, 3},
                             {37, 320, 1},
                             {130, 544, 17},
                             {161, 512, 4},
                             {3, 33024, 258}}) {
      for (const bool has_zeros : {false, true}) {
        for (const bool is_permuted : {false, true}) {
          const Scale type = Scale(++seed % 3);
          const Stored s = store(
              {layout, bits, size.n, size.k, size.groups, has_zeros, is_permuted, type}, seed);
          check_all(s, 0, size.n, 1);
          if (size.n > 5) check_all(s, 5, size.n - 6, 2);
        }
      }
    }
  }
}

TEST(Packed, ScalesThatAreNoNormalHalves) {
  for (const auto& [layout, bits] : kKinds) {
    for (const Scale type : {Scale::kF16, Scale::kBf16, Scale::kF32}) {
      Stored s = store({layout, bits, 40, 256, 2, true, false, type}, 5);
      const float odd[] = {0.0f, -0.0f, 6e-8f, 3e-5f, -0.01f, 65504.0f, 65520.0f, 1e-12f, 1e6f};
      for (size_t row = 0; row < std::size(odd); ++row) {
        float v = odd[row];
        const size_t index = layout == Layout::kRows ? 2 * row : row;  // of group 0
        if (type == Scale::kF32) std::memcpy(s.scales.data() + 4 * index, &v, 4);
        if (type != Scale::kF32) {
          if (type == Scale::kF16) v = std::min(v, 65504.0f);
          const uint16_t half = type == Scale::kF16 ? float_to_half(v) : float_to_bf16(v);
          std::memcpy(s.scales.data() + 2 * index, &half, 2);
          v = type == Scale::kF16 ? half_to_float(half) : bf16_to_float(half);
        }
        s.scale[2 * row] = v;
      }
      check_all(s, 0, 40, 1);
      const uint16_t infinite = type == Scale::kF16 ? 0x7C00 : 0xFF80;
      const size_t last = s.scales.size() - 2;  // of a float the upper half
      std::memcpy(s.scales.data() + last, &infinite, 2);
      std::vector<uint8_t> out(40 * row_bytes(Q8_0::kGgufId, 256));
      try {
        keep_codes(s.packed, 0, 40, Q8_0::kGgufId, out, 2);
        FAIL() << "an infinite scale";
      } catch (const FormatError& error) {
        EXPECT_NE(std::string(error.what()).find("row 39, group 1"), std::string::npos)
            << error.what();
      }
    }
  }
}

TEST(Packed, FloatsAreScaleTimesCodeLessZero) {
  unsigned seed = 100;
  for (const auto& [layout, bits] : kKinds) {
    // Columns and rows that no word is filled by, groups of any number of columns.
    for (const auto& [n, k, groups] :
         {std::array<size_t, 3>{1, 1, 1}, {9, 13, 1}, {35, 60, 5}, {70, 96, 6}}) {
      for (const bool is_permuted : {false, true}) {
        for (const bool is_ordered : {false, true}) {
          Stored s =
              store({layout, bits, n, k, groups, true, is_permuted, Scale(++seed % 3)}, seed);
          std::vector<int32_t> group_of(k);
          for (size_t i = 0; i < k; ++i)
            group_of[i] =
                static_cast<int32_t>(is_ordered ? (7 * i + 3) % groups : i / (k / groups));
          if (is_ordered) s.packed.group_of = group_of;
          const size_t first = n / 4, count = n - first;
          std::vector<float> out(count * k);
          packed_to_floats(s.packed, first, count, out);
          for (size_t at = 0; at < out.size(); ++at) {
            const size_t i = at % k, r = first + at / k, row = is_permuted ? s.rows[r] : r;
            const size_t g = row * groups + group_of[i];
            ASSERT_EQ(out[at], s.scale[g] * static_cast<float>(s.code[row * k + i] - s.zero[g]))
                << "layout " << int(layout) << " bits " << bits << " n " << n << " row " << r
                << " column " << i;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace kt::quant
