#include "cpu/ops/row_chunks.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "quant/r16.h"

namespace kt::cpu {
namespace {

// Chunks a worker should have at least, so that one that is late can be helped.
constexpr int64_t kChunksPerWorker = 4;
// And what a chunk should have at least, beside which handing it out takes no time.
constexpr int64_t kChunkBytes = 128 << 10;

int64_t groups_of(int64_t rows) { return (rows + 15) / 16; }

// Row groups of a chunk: bands, as many as it takes.
int64_t groups_of_chunk(const Matrix& matrix) {
  const auto bytes = static_cast<int64_t>(matrix.bytes()) / groups_of(matrix.rows());
  const int64_t band = std::max<int64_t>(bytes * quant::kBandGroups, 1);
  return (kChunkBytes + band - 1) / band * quant::kBandGroups;
}

}  // namespace

std::span<const RowChunk> row_chunks(Context& context, std::span<const Matrix* const> matrices) {
  const int threads = context.pool.threads();
  int64_t total = 0;
  size_t slices = 0;
  for (const Matrix* matrix : matrices) {
    total += groups_of(matrix->rows());
    slices = std::max(slices, matrix->slices().size());
  }
  // No more than this, so that there are enough: whole bands or whole fractions of one.
  auto most_groups = std::max<int64_t>(total / (threads * kChunksPerWorker), 1);
  if (most_groups > quant::kBandGroups)
    most_groups -= most_groups % quant::kBandGroups;
  else
    most_groups = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(most_groups)));
  const auto unit_of = [&](const Matrix& matrix) {
    if (threads == 1) return std::numeric_limits<int64_t>::max();
    return std::min(groups_of_chunk(matrix), most_groups);
  };
  int64_t most = 0;
  for (const Matrix* matrix : matrices) {
    for (const RowSlice& slice : matrix->slices())
      most += threads > 1 ? groups_of(slice.rows) / unit_of(*matrix) + 1 : 1;
  }
  RowChunk* chunks = context.arena.take<RowChunk>(most);
  size_t count = 0;
  for (size_t part = 0; part < slices; ++part) {
    for (size_t m = 0; m < matrices.size(); ++m) {
      if (part >= matrices[m]->slices().size()) continue;
      const RowSlice& slice = matrices[m]->slices()[part];
      const int64_t first = slice.row_begin / 16, end = first + groups_of(slice.rows);
      const int64_t unit = unit_of(*matrices[m]);
      for (int64_t begin = first; begin < end;) {
        const int64_t stop = end - begin > unit ? begin + unit : end;
        chunks[count++] = {static_cast<int>(m), {begin, stop}};
        begin = stop;
      }
    }
  }
  return {chunks, count};
}

}  // namespace kt::cpu
