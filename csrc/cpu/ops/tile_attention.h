// Softmax attention in int16 over tiles of 64 positions: which rows go together, and what is done in
// parallel.
//
// The positions of a sequence are cut into segments of 512. Within one, a running maximum is kept
// from tile to tile; segments are folded in order afterwards. That order is the same whoever computes
// a segment, so a row's result does not depend on threads, on the rows that come with it, or on where
// a prompt is cut: a few rows get their segments computed in parallel (a generated token at a long
// context), many rows are dealt out in blocks that go through all of theirs.
#pragma once

#include "cpu/ops/attention.h"

namespace kt::cpu {

/// Where the tiles of a sequence come from.
class TileSource {
 public:
  virtual ~TileSource() = default;
  /// The tile of positions [64 page, 64 page + 64) of a key head of the row's sequence, of which the
  /// first `count` will be looked at. `scratch` has room for one tile.
  virtual const uint8_t* tile(int row, int head, int64_t page, int count,
                              uint8_t* scratch) const = 0;
  /// Where it lies if it need not be made, for fetching ahead; else null.
  virtual const uint8_t* place(int, int, int64_t) const { return nullptr; }
};

/// Tiles that the cache holds: heads after heads in each page.
class CachedTiles : public TileSource {
 public:
  CachedTiles(const AttentionRows& rows, int64_t tile_bytes)
      : rows_(rows), tile_bytes_(tile_bytes) {}
  const uint8_t* tile(int row, int head, int64_t page, int, uint8_t*) const override {
    return place(row, head, page);
  }
  const uint8_t* place(int row, int head, int64_t page) const override {
    return rows_.kv[row].k[page] + head * tile_bytes_;
  }

 private:
  const AttentionRows& rows_;
  int64_t tile_bytes_;
};

/// Tiles made of a cache in rows, for each use anew. v_width 0 in the spec: the first v_dim values of
/// a key are the value.
class RowTiles : public TileSource {
 public:
  RowTiles(const KernelTable& kernels, const AttentionRows& rows, const KvSpec& spec, int v_dim)
      : kernels_(kernels), rows_(rows), spec_(spec), v_dim_(v_dim) {}
  const uint8_t* tile(int row, int head, int64_t page, int count, uint8_t* scratch) const override;

 private:
  const KernelTable& kernels_;
  const AttentionRows& rows_;
  KvSpec spec_;
  int v_dim_;
};

/// Queries and results: q [m, heads, k_dim], scaled, rows q_stride floats apart; out [m, heads, v_dim],
/// overwritten, rows out_stride apart. heads is key_heads * share; query heads [h * share, (h + 1) *
/// share) belong to key head h.
struct TileQueries {
  const float* q;
  int64_t q_stride;
  float* out;
  int64_t out_stride;
  int key_heads, share, k_dim, v_dim;
};

/// The attention of the rows in `chosen` ([count] indices into rows).
void tile_attention(Context& context, const AttentionRows& rows, const int* chosen, int count,
                    const TileQueries& queries, const TileSource& tiles);

/// Rows of one sequence, as runs of a list.
struct RowRun {
  int begin, count;
};

/// Sorts `chosen` ([count] indices into rows) by sequence, in one in their order, and tells the runs.
/// runs: [count] at most; returns how many.
int sort_by_sequence(const AttentionRows& rows, int* chosen, int count, RowRun* runs);

}  // namespace kt::cpu
