#include "cpu/ops/row_chunks.h"

#include <algorithm>
#include <limits>

#include "quant/r16.h"

namespace kt::cpu {
namespace {

// Chunks a worker should have at least, so that one that is late can be helped.
constexpr int64_t kChunksPerWorker = 4;

int64_t groups_of(int64_t rows) { return (rows + 15) / 16; }

}  // namespace

std::span<const RowChunk> row_chunks(Context& context, std::span<const Matrix* const> matrices) {
  const int threads = context.pool.threads();
  int64_t total = 0;
  size_t slices = 0;
  for (const Matrix* matrix : matrices) {
    total += groups_of(matrix->rows());
    slices = std::max(slices, matrix->slices().size());
  }
  int64_t unit = std::numeric_limits<int64_t>::max();
  if (threads > 1) {
    unit = quant::kBandGroups;
    while (unit > 1 && total < unit * threads * kChunksPerWorker) unit /= 2;
  }
  int64_t most = 0;
  for (const Matrix* matrix : matrices) {
    for (const RowSlice& slice : matrix->slices())
      most += threads > 1 ? (groups_of(slice.rows) + unit - 1) / unit : 1;
  }
  RowChunk* chunks = context.arena.take<RowChunk>(most);
  size_t count = 0;
  for (size_t part = 0; part < slices; ++part) {
    for (size_t m = 0; m < matrices.size(); ++m) {
      if (part >= matrices[m]->slices().size()) continue;
      const RowSlice& slice = matrices[m]->slices()[part];
      const int64_t first = slice.row_begin / 16, end = first + groups_of(slice.rows);
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
