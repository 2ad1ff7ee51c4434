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

/// What a worker probably goes on with behind the index'th chunk.
inline const RowChunk& chunk_after(std::span<const RowChunk> chunks, int64_t index) {
  return chunks[std::min<size_t>(index + 1, chunks.size() - 1)];
}

}  // namespace kt::cpu
