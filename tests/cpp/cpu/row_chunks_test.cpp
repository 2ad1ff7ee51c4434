// How rows are dealt out to workers, and what each of them is told to expect before a job begins.
#include "cpu/ops/row_chunks.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "cpu/pool/fetcher.h"
#include "quant/formats.h"

namespace kt::cpu {
namespace {

std::shared_ptr<const Matrix> zeros(Context& context, int64_t rows, int64_t cols) {
  const std::vector<uint8_t> blocks(rows * cols / quant::Q8_0::kValues *
                                    sizeof(quant::Q8_0::Block));
  return Matrix::repack(context, blocks, quant::Q8_0::kGgufId, rows, cols, "zeros");
}

struct Shapes {
  int threads;
  std::vector<int> nodes;
  std::vector<int64_t> rows;
};

// Every row group once, in the order of the slices; and a worker is to expect the place at which the
// pool has it begin: indices are dealt out in equal runs.
TEST(RowChunks, WorkersExpectWhereTheyBegin) {
  constexpr int64_t kCols = 256;
  for (const Shapes& shapes : std::vector<Shapes>{{2, {}, {2048, 512, 512}},
                                                  {3, {}, {768, 768, 768, 768}},
                                                  {4, {0, 0, 1, 1}, {4096, 2048}},
                                                  {3, {}, {17, 5}},
                                                  {5, {}, {16}},
                                                  {2, {}, {40000}}}) {
    Context context(shapes.threads, shapes.nodes);
    std::vector<std::shared_ptr<const Matrix>> held;
    std::vector<const Matrix*> matrices;
    int64_t groups = 0;
    for (const int64_t rows : shapes.rows) {
      held.push_back(zeros(context, rows, kCols));
      matrices.push_back(held.back().get());
      groups += (rows + 15) / 16;
    }
    Arena::Scope scope(context.arena);
    const auto chunks = row_chunks(context, matrices);
    for (const RowChunk& chunk : chunks) groups -= chunk.groups.end - chunk.groups.begin;
    EXPECT_EQ(groups, 0);
    const auto expected = expected_rows(context, matrices);
    const auto count = static_cast<int64_t>(chunks.size()), workers = int64_t{shapes.threads};
    ASSERT_EQ(static_cast<int64_t>(expected.size()), workers);
    for (int64_t worker = 0; worker < workers; ++worker) {
      const int64_t begin = count * worker / workers, end = count * (worker + 1) / workers;
      const ExpectedRows& rows = expected[worker];
      if (begin == end) {
        EXPECT_EQ(rows.bytes, 0);
        continue;
      }
      const RowChunk& first = chunks[begin];
      const Matrix& matrix = *matrices[first.matrix];
      EXPECT_EQ(rows.data, first_record(context.kernels, matrix, first.groups.begin));
      // In one slice, in the worker's own run, and all of its first chunk but what is too much.
      const int64_t group_bytes = matrix.bytes() / ((matrix.rows() + 15) / 16);
      EXPECT_GT(rows.bytes, 0);
      int64_t in_run = 0;
      for (int64_t i = begin; i < end && chunks[i].matrix == first.matrix; ++i)
        in_run += (chunks[i].groups.end - chunks[i].groups.begin) * group_bytes;
      EXPECT_LE(rows.bytes, in_run);
      EXPECT_GE(rows.bytes, std::min<int64_t>((first.groups.end - first.groups.begin) * group_bytes,
                                              128 << 10));
    }
  }
}

TEST(RowChunks, NothingIsExpectedOfNothing) {
  Context context(2);
  Arena::Scope scope(context.arena);
  for (const ExpectedRows& rows : expected_rows(context, {})) EXPECT_EQ(rows.bytes, 0);
}

int steps(Fetcher& fetcher, const Ahead& ahead) {
  int count = 0;
  while (fetcher.step(ahead)) ++count;
  return count;
}

// What is expected is fetched once, four lines a step; what is said later takes its place.
TEST(Fetcher, FetchesOnceAndTurnsToWhatIsNew) {
  const std::vector<uint8_t> bytes(4096);
  Ahead ahead;
  Fetcher fetcher;
  EXPECT_EQ(steps(fetcher, ahead), 0);
  ahead.set(bytes.data(), 1000);
  EXPECT_EQ(steps(fetcher, ahead), 4);
  EXPECT_EQ(steps(fetcher, ahead), 0);
  ahead.set(bytes.data(), 4096);
  EXPECT_TRUE(fetcher.step(ahead));
  ahead.set(bytes.data() + 64, 256);
  EXPECT_EQ(steps(fetcher, ahead), 1);
  ahead.set(bytes.data(), 4096);
  EXPECT_TRUE(fetcher.step(ahead));
  ahead.set(nullptr, 0);
  EXPECT_FALSE(fetcher.step(ahead));
}

}  // namespace
}  // namespace kt::cpu
