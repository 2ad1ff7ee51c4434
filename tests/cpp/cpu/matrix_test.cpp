// Matrices in memory: what repacking writes, on one node or sliced over several (an injected
// topology: the memory is the same, the slices and who writes them are not).
#include "cpu/ops/matrix.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "base/error.h"
#include "cpu/ops/linear.h"
#include "quant/formats.h"
#include "quant/r16.h"

namespace kt::cpu {
namespace {

using Q8_0 = quant::Q8_0;

std::vector<uint8_t> random_blocks(int64_t count, int64_t rows, int64_t cols) {
  std::vector<uint8_t> bytes(count * rows * cols / Q8_0::kValues * sizeof(Q8_0::Block));
  std::mt19937 random(5);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  for (size_t at = 0; at < bytes.size(); at += sizeof(Q8_0::Block)) {
    const uint16_t scale = 0x2c00 + random() % 512;  // about 1/16
    std::memcpy(&bytes[at], &scale, 2);
  }
  return bytes;
}

// The records of a matrix, slice after slice.
std::vector<uint8_t> records_of(const Matrix& matrix) {
  std::vector<uint8_t> bytes;
  for (const RowSlice& slice : matrix.slices())
    bytes.insert(bytes.end(), slice.data, slice.data + matrix.slice_bytes(slice));
  return bytes;
}

// Records of one matrix by the format's own functions, a block at a time.
constexpr int64_t kBandRows = 16 * quant::kBandGroups;
std::vector<uint8_t> expected_records(const uint8_t* blocks, int64_t rows, int64_t cols) {
  const int64_t per_row = cols / Q8_0::kValues, groups = (rows + 15) / 16;
  std::vector<uint8_t> out(groups * per_row * quant::R16<Q8_0>::kRecordBytes);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t b = 0; b < per_row; ++b) {
      Q8_0::Block block;
      std::memcpy(&block, blocks + (row * per_row + b) * sizeof block, sizeof block);
      const int64_t record = quant::r16_record<Q8_0>(groups, per_row, row / 16, b);
      quant::r16_put<Q8_0>(block, static_cast<int>(row % 16),
                           &out[record * quant::R16<Q8_0>::kRecordBytes]);
    }
  }
  return out;
}

struct Case {
  std::vector<int> nodes;  // of each worker
  int64_t count, rows, cols;
};

class MatrixOn : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(
    Topologies, MatrixOn,
    ::testing::Values(Case{{0}, 1, 32, 64}, Case{{0, 0}, 3, 100, 64}, Case{{0, 1}, 5, 300, 96},
                      Case{{0, 0, 1, 1}, 2, 270, 64}, Case{{0, 1, 2, 3}, 4, 700, 32},
                      Case{{7, 3, 7, 3}, 2, 133, 64}, Case{{0, 1, 2, 3}, 3, 17, 64},
                      Case{{0, 1}, 2, 3000, 2048}));

TEST_P(MatrixOn, HoldsEveryRowOnceInSlicesOfItsNodes) {
  const Case& c = GetParam();
  Context context(static_cast<int>(c.nodes.size()), c.nodes);
  const auto blocks = random_blocks(c.count, c.rows, c.cols);
  const auto stack =
      Matrix::repack_stack(context, blocks, {Q8_0::kGgufId, c.count, c.rows, c.cols, "w"});
  ASSERT_EQ(static_cast<int64_t>(stack.size()), c.count);
  std::vector<int> nodes = c.nodes;
  std::sort(nodes.begin(), nodes.end());
  nodes.erase(std::unique(nodes.begin(), nodes.end()), nodes.end());
  const size_t matrix_bytes = blocks.size() / c.count;
  for (int64_t m = 0; m < c.count; ++m) {
    const Matrix& matrix = *stack[m];
    const auto bands = static_cast<size_t>((c.rows + kBandRows - 1) / kBandRows);
    EXPECT_EQ(matrix.slices().size(), std::min(nodes.size(), bands));
    int64_t next = 0;
    for (size_t s = 0; s < matrix.slices().size(); ++s) {
      const RowSlice& slice = matrix.slices()[s];
      EXPECT_EQ(slice.node, nodes[s]);
      EXPECT_EQ(slice.row_begin, next);
      EXPECT_EQ(slice.row_begin % kBandRows, 0);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(slice.data) % WeightMemory::kAlignment, 0u);
      next += slice.rows;
    }
    EXPECT_EQ(next, c.rows);
    EXPECT_EQ(records_of(matrix), expected_records(&blocks[m * matrix_bytes], c.rows, c.cols));
  }
}

TEST_P(MatrixOn, RecordsComeBackCopiedOrInPlace) {
  const Case& c = GetParam();
  Context context(static_cast<int>(c.nodes.size()), c.nodes);
  const auto blocks = random_blocks(c.count, c.rows, c.cols);
  const StackShape shape{Q8_0::kGgufId, c.count, c.rows, c.cols, "w"};
  auto kept = std::make_shared<std::vector<uint8_t>>();
  for (const auto& matrix : Matrix::repack_stack(context, blocks, shape)) {
    const auto records = records_of(*matrix);
    kept->insert(kept->end(), records.begin(), records.end());
  }
  const auto copied = Matrix::from_records(context, *kept, shape, nullptr);
  const auto placed = Matrix::from_records(context, *kept, shape, kept);
  const size_t bytes = Matrix::record_bytes(shape.gguf_id, shape.rows, shape.cols);
  for (int64_t m = 0; m < c.count; ++m) {
    const std::vector<uint8_t> own(kept->begin() + m * bytes, kept->begin() + (m + 1) * bytes);
    EXPECT_EQ(records_of(*copied[m]), own);
    ASSERT_EQ(placed[m]->slices().size(), 1u);
    EXPECT_EQ(placed[m]->slices()[0].data, kept->data() + m * bytes);
  }
  EXPECT_THROW(Matrix::from_records(context, {kept->data(), kept->size() - 1}, shape, nullptr),
               InvalidArgument);
}

// Slicing changes who reads what, and no bit of a product.
TEST_P(MatrixOn, ProductsAreThoseOfOneNode) {
  const Case& c = GetParam();
  const auto blocks = random_blocks(c.count, c.rows, c.cols);
  const StackShape shape{Q8_0::kGgufId, c.count, c.rows, c.cols, "w"};
  std::mt19937 random(9);
  std::normal_distribution<float> normal;
  for (const int m : {1, 3, 40}) {
    std::vector<float> x(m * c.cols);
    for (float& value : x) value = normal(random);
    const std::vector<Rounding> rounding(m, m == 40 ? Rounding::kDigit : Rounding::kExact);
    std::vector<std::vector<float>> results;
    for (const auto& nodes : {std::vector<int>(1, 0), c.nodes}) {
      Context context(static_cast<int>(nodes.size()), nodes);
      std::vector<float> y(c.count * m * c.rows);
      for (int64_t i = 0; const auto& matrix : Matrix::repack_stack(context, blocks, shape)) {
        const Linear linear(matrix, {});
        const Activations input(context, x.data(), c.cols, m, c.cols, rounding.data());
        const LinearCall call[] = {{&linear, &input, &y[i++ * m * c.rows], c.rows}};
        run_linears(context, call);
      }
      results.push_back(std::move(y));
    }
    EXPECT_EQ(results[0], results[1]) << m << " rows";
  }
}

TEST(WeightMemory, PiecesAreApartAndLiveAsLongAsTheyAreHeld) {
  WeightMemory memory;
  std::vector<WeightMemory::Piece> pieces;
  std::mt19937 random(1);
  for (int i = 0; i < 200; ++i) {
    const size_t bytes = i % 40 == 3 ? (40u << 20) : 1 + random() % 900000;
    pieces.push_back(memory.take(bytes, i % 3 - 1));
    pieces.back().data[0] = pieces.back().data[bytes - 1] = static_cast<uint8_t>(i);
    if (i % 5 == 4) pieces.erase(pieces.begin() + random() % pieces.size());
  }
  std::sort(pieces.begin(), pieces.end(),
            [](const auto& a, const auto& b) { return a.data < b.data; });
  for (size_t i = 1; i < pieces.size(); ++i) EXPECT_NE(pieces[i - 1].data, pieces[i].data);
  for (const auto& piece : pieces) {
    EXPECT_GE(piece.data, piece.region->data());
    EXPECT_LT(piece.data, piece.region->data() + piece.region->size());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(piece.region->data()) % os::kHugePage, 0u);
  }
}

}  // namespace
}  // namespace kt::cpu
