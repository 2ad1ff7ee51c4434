// The function table every instruction set fills. Free of library types: kernels include it.
//
// Kernels are `noexcept` raw-pointer code compiled once per ISA (csrc/cpu/kernels); operators
// (csrc/cpu/ops) check shapes, cut work into ranges and call through this table.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace kt::cpu {

/// How a row of activations is rounded before it meets quantised weights. It belongs to the row,
/// never to the batch: neighbours, chunking and threads do not change it.
enum class Rounding : uint8_t {
  kFloat = 0,  // not at all: weights are unpacked to float (reference)
  kExact = 1,  // two int8 halves per value, a float scale per 32: about 15 bits
  kDigit = 2,  // one asymmetric int8 per value, per 32 a power-of-two scale and a coarse zero point
};

/// Bytes per 32 activations in halves, and room for 256 in either integer kind; each ISA lays them
/// out as its dot product likes.
inline constexpr size_t kActBlockBytes = 88;
inline constexpr size_t kDigitBlockBytes = 704;

/// Bytes of one prepared row of k activations (k is rounded up to whole blocks of 256).
static inline constexpr size_t act_row_bytes(int64_t k) {
  return size_t(k + 255) / 256 * kDigitBlockBytes;
}

/// y[token][row] = sum over k of W[row][k] * x[token][k], for some row groups and all tokens.
struct MatmulTask {
  const uint8_t* records;  // W in R16
  int64_t k;               // columns of W, a multiple of the format's block
  int64_t group_begin;     // row groups of 16, half open
  int64_t group_end;
  int64_t rows;       // rows of all of W: nothing is stored beyond
  Rounding rounding;  // of the tokens, but for the first num_exact
  int num_tokens;
  const void* const* x;  // per token: float[k], or act_row_bytes(k) bytes in the integer kinds
  float* const* y;       // per token: y[token][row - group_begin * 16]
  int num_exact = 0;     // of tokens in digits, so many at the beginning are in halves
  /// Where the worker goes after this: the records of two row groups, of which as much is fetched
  /// as of this matrix; or null.
  const uint8_t* next[2] = {nullptr, nullptr};
};

/// y[k] += sum over rows of W[row][k] * x[row] for rows [row_begin, row_end): the transposed
/// product.
struct TransposedTask {
  const uint8_t* records;  // W in R16
  int64_t k;
  int64_t rows;  // of all of W
  int64_t row_begin, row_end;
  const float* x;  // x[0] belongs to row_begin
  float* y;        // float[k]
};

/// kI16: tiles of int16 with a float step per row (kv_tile_bytes); the others are rows of values.
enum class KvType : uint8_t { kF32 = 0, kF16 = 1, kBF16 = 2, kQ8_0 = 3, kI16 = 4 };

/// Softmax attention of some query heads over one sequence's cached positions [0, length).
struct AttentionTask {
  const float* q;  // [num_q, k_dim], q_stride floats apart; already scaled
  int num_q;
  int64_t q_stride;
  int k_dim, v_dim;                // multiples of 16 are fast; any value is right
  const uint8_t* const* k_blocks;  // per 64 positions: where this head's keys start
  const uint8_t* const* v_blocks;
  int64_t k_stride, v_stride;  // bytes between positions
  KvType k_type, v_type;
  int64_t length;
  float* out;  // [num_q, v_dim], out_stride floats apart
  int64_t out_stride;
};

inline constexpr int kKvBlock = 64;  // positions per page of the KV cache

/// Keys and values of 64 positions of one key head in int16, as attend_tile reads them; the layout
/// is in kernels/attention_tile_inl.h.
static inline constexpr int64_t kv_tile_k_bytes(int64_t k_dim) {
  return (k_dim + 1) / 2 * 256 + 256;
}
static inline constexpr int64_t kv_tile_bytes(int64_t k_dim, int64_t v_dim) {
  return kv_tile_k_bytes(k_dim) + 256 + (v_dim + 31) / 32 * 4096;
}

/// One tile's part in the attention of some query rows. The state, before the first tile: out and
/// total 0, top -inf.
struct TileTask {
  int num_rows;
  const int16_t* const* q;  // per row: k_dim values of round_int16, scaled as scores are
  const float* q_step;      // per row
  const int32_t* count;     // per row: how many of the 64 positions it sees, 0..64
  int k_dim, v_dim;
  const uint8_t* tile;
  const uint8_t* next;  // the tile that comes after it, or null
  float* const* out;    // per row: v_dim sums of values, weighted by e^(score - top)
  float* top;           // per row: the largest score so far, in units of ln 2
  float* total;         // per row: the sum of weights
};

/// Products of rows with the 64 keys of a tile: out[row][j] = x[row] . key j.
struct ScoreTask {
  int num_rows;
  const int16_t* const* x;  // per row: k_dim values of round_int16
  const float* step;        // per row
  int k_dim;
  const uint8_t* tile;
  float* const* out;  // per row [64]
};

/// The states of two runs of positions made one.
struct FoldTask {
  int num_rows;
  int v_dim;
  float* const* out;  // per row, with top and total: a state as in TileTask; becomes that of both
  float* top;
  float* total;
  const float* const* part_out;
  const float* part_top;
  const float* part_total;
  bool is_last;  // out becomes the attention itself: divided by total
};

inline constexpr int kScanBlock = 64;  // values per result of block_max and block_exp_sum

inline constexpr int kFewTokens = 8;  // beyond, a tile in L1 pays

/// The kernels of a weight format, and what the products of many tokens, which are the same for all
/// formats of one shape, need to know of it. matmul() of isa.h chooses between them.
struct FormatKernels {
  int gguf_id = 0;
  int values = 0;            // per block
  int group = 0;             // values per scale, 32 or 16; 0: plain floats
  int64_t record_bytes = 0;  // of R16
  void (*floats)(const MatmulTask&) = nullptr;  // Rounding::kFloat, any number of tokens
  /// Halves of at most kFewTokens tokens; null where `many` takes them.
  void (*few)(const MatmulTask&) = nullptr;
  /// `few` takes more tokens too, in turns: the order of its sums is its own.
  bool few_for_all = false;
  /// Halves, digits or both, of any number of tokens; null for plain floats, as is `unpack`.
  void (*many)(const MatmulTask&, const FormatKernels&) = nullptr;
  /// Columns of a row group, its records from `records` on, to a slab (kernels/slab_inl.h).
  void (*unpack)(const uint8_t* records, int columns, void* slab) = nullptr;
  void (*transposed)(const TransposedTask&) = nullptr;
  /// The same with x times the rows' scales rounded to halves; null where `transposed` is as fast.
  void (*transposed_halves)(const TransposedTask&, const FormatKernels&) = nullptr;
};

/// What the instruction set can do at most, for benchmarks (kernels/limits_inl.h). A null function:
/// it has no such instruction.
struct LimitKernels {
  int32_t (*read)(const uint8_t* p, int64_t bytes) = nullptr;  // bytes: a multiple of 512
  void (*int8)(int64_t rounds) = nullptr;                      // dot products of bytes
  int64_t int8_ops = 0;                                        // operations of a round
  void (*bf16)(int64_t rounds) = nullptr;                      // only where the CPU has AVX512-BF16
  int64_t bf16_ops = 0;
  void (*float32)(int64_t rounds) = nullptr;
  int64_t float32_ops = 0;
};

/// In the table of a set that changes only some of another's kernels (dispatch.cpp says whose),
/// what is null or missing is that one's. Both then lay activations out alike.
struct KernelTable {
  const char* name = nullptr;
  const FormatKernels* formats = nullptr;
  int num_formats = 0;
  /// Columns [begin, end) of a row, which x has; begin is a multiple of 32.
  void (*quantize_exact)(const float* x, int64_t begin, int64_t end, uint8_t* row) = nullptr;
  /// The same of a row of k columns; begin is a multiple of 256.
  void (*quantize_digit)(const float* x, int64_t begin, int64_t end, int64_t k,
                         uint8_t* row) = nullptr;
  /// out = x / sqrt(mean(x^2) + eps) * weight; out may be x.
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out) = nullptr;
  /// out = silu(gate) * up; out may be gate.
  void (*swiglu)(const float* gate, const float* up, int64_t n, float* out) = nullptr;
  /// y += a * x
  void (*axpy)(float a, const float* x, int64_t n, float* y) = nullptr;
  float (*dot)(const float* a, const float* b, int64_t n) = nullptr;
  /// out = e^(x - max x) / sum of these; out may be x.
  void (*softmax)(const float* x, int64_t n, float* out) = nullptr;
  /// out = 1 / (1 + e^-x); out may be x.
  void (*sigmoid)(const float* x, int64_t n, float* out) = nullptr;
  /// out[b] = the largest of x[64 b, 64 b + 64); a NaN is passed over, -inf where nothing else is.
  void (*block_max)(const float* x, int64_t n, float* out) = nullptr;
  /// out[b] = sum over the same blocks of e^((x - top) * factor), with x <= top; a NaN counts 0.
  void (*block_exp_sum)(const float* x, int64_t n, float top, float factor, float* out) = nullptr;
  /// Attention over pages; adds nothing where length is 0.
  void (*attention)(const AttentionTask&) = nullptr;
  /// Multiplies the tile's keys and values with rows and adds to their state.
  void (*attend_tile)(const TileTask&) = nullptr;
  void (*fold_tiles)(const FoldTask&) = nullptr;
  void (*score_tile)(const ScoreTask&) = nullptr;
  /// One position's key and value -> slot 0..63 of a tile.
  void (*put_tile)(const float* key, int k_dim, const float* value, int v_dim, int slot,
                   uint8_t* tile) = nullptr;
  void (*get_tile)(const uint8_t* tile, int k_dim, int v_dim, int slot, float* key,
                   float* value) = nullptr;
  /// x -> int16, n rounded up to a pair; returns the size of one unit.
  float (*round_int16)(const float* x, int64_t n, int16_t* out) = nullptr;
  /// float -> cache element type, n values (q8_0: n a multiple of 32).
  void (*store_kv)(const float* x, int64_t n, KvType type, uint8_t* out) = nullptr;
  void (*load_kv)(const uint8_t* in, int64_t n, KvType type, float* x) = nullptr;
  LimitKernels limits = {};
};

/// Bytes of n cache values of a type that is kept in rows.
static inline constexpr int64_t kv_bytes(KvType type, int64_t n) {
  switch (type) {
    case KvType::kF32:
      return n * 4;
    case KvType::kF16:
    case KvType::kBF16:
      return n * 2;
    case KvType::kQ8_0:
      return n / 32 * 34;
    case KvType::kI16:
      break;
  }
  return 0;
}

}  // namespace kt::cpu
