// How the rows of matrices that meet few tokens are shared out among workers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "cpu/ops/context.h"
#include "cpu/ops/matrix.h"

namespace kt::cpu {

/// Row groups of the matrix'th of several.
struct RowChunk {
  int matrix;
  Range groups;
};

/// Cuts matrices into the indices of a job. Few tokens take as long as reading the weights, and a
/// jump costs as much as reading some 40 KB on, so the chunks are whole bands (quant/r16.h) in the
/// order of memory: the consecutive indices that the pool gives a worker are one stream per matrix.
/// Slices of one node follow one another, as the workers of a node do. Lives in the arena.
std::span<const RowChunk> row_chunks(Context& context, std::span<const Matrix* const> matrices);

/// Where a worker begins in a job of row_chunks(), and how much it has there in one run; bytes 0: it
/// has none.
struct ExpectedRows {
  const uint8_t* data;
  int64_t bytes;
};

/// Of every worker that takes part. At most a part of a core's L2. Lives in the arena.
std::span<const ExpectedRows> expected_rows(Context& context,
                                            std::span<const Matrix* const> matrices);

/// Says to the pool that these matrices are the next that meet few tokens, in place of what it was
/// told before: workers without anything to do fetch the beginning of what will be theirs.
void expect_rows(Context& context, std::span<const Matrix* const> matrices);

/// The first record of a row group; null where the matrix has no such group.
const uint8_t* first_record(const KernelTable& kernels, const Matrix& matrix, int64_t group);

/// What a worker probably goes on with behind the index'th chunk.
inline const RowChunk& chunk_after(std::span<const RowChunk> chunks, int64_t index) {
  return chunks[std::min<size_t>(index + 1, chunks.size() - 1)];
}

}  // namespace kt::cpu
