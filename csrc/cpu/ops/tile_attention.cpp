#include "cpu/ops/tile_attention.h"

#include <algorithm>
#include <limits>

namespace kt::cpu {
namespace {

constexpr int kSegmentTiles = 8;    // positions whose states are folded into one another
constexpr int kBlockRows = 256;     // query rows that share one pass over the tiles: they fill the L2
constexpr int kSplitRows = 128;     // so few query rows of a run have their segments in parallel
constexpr int kPartHeads = 16;      // query heads that a worker should have at least of a tile
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// The state of up to `rows` query rows.
struct State {
  float** out;
  float* top;
  float* total;

  static State take(Arena& arena, int64_t rows) {
    return {arena.take<float*>(rows), arena.take<float>(rows), arena.take<float>(rows)};
  }
  void clear(int rows, int v_dim) const {
    for (int r = 0; r < rows; ++r) {
      std::fill_n(out[r], v_dim, 0.0f);
      top[r] = kNothing;
      total[r] = 0.0f;
    }
  }
};

// What one worker has for itself.
struct Scratch {
  uint8_t* tile;
  const int16_t** q;
  float* q_step;
  int32_t* count;
  State state, part;
  float* sums;  // of part
};

// Some rows of a run with one key head, or some of the query heads that share it.
struct Block {
  const int* rows;
  int count;
  int head;
  int first, share;  // query heads of the key head's
};

class Job {
 public:
  Job(Context& context, const AttentionRows& rows, const TileQueries& queries,
      const TileSource& tiles)
      : context_(context), rows_(rows), queries_(queries), tiles_(tiles) {}

  void round_queries(const int* chosen, int count) {
    const int heads = queries_.key_heads * queries_.share;
    width_ = (queries_.k_dim + 1) / 2 * 2;
    rounded_ = context_.arena.take<int16_t>(int64_t{rows_.m} * heads * width_);
    steps_ = context_.arena.take<float>(int64_t{rows_.m} * heads);
    const int64_t total = int64_t{count} * heads, pieces = pieces_for(context_, total, 8);
    context_.pool.run(pieces, [&](int64_t index, int) {
      const Range range = piece(total, pieces, index);
      for (int64_t i = range.begin; i < range.end; ++i) {
        const int64_t row = chosen[i / heads], h = i % heads;
        steps_[row * heads + h] = context_.kernels.round_int16(
            queries_.q + row * queries_.q_stride + h * queries_.k_dim, queries_.k_dim,
            rounded_ + (row * heads + h) * width_);
      }
    });
  }

  Scratch take_scratch(int rows) const {
    Arena& arena = context_.arena;
    Scratch scratch{};
    scratch.tile = arena.take<uint8_t>(kv_tile_bytes(queries_.k_dim, queries_.v_dim));
    scratch.q = arena.take<const int16_t*>(rows);
    scratch.q_step = arena.take<float>(rows);
    scratch.count = arena.take<int32_t>(rows);
    scratch.state = State::take(arena, rows);
    scratch.part = State::take(arena, rows);
    scratch.sums = arena.take<float>(int64_t{rows} * queries_.v_dim);
    return scratch;
  }

  int block_rows(const Block& block) const { return block.count * block.share; }
  int64_t segments(const Block& block) const {
    constexpr int64_t kPositions = int64_t{kSegmentTiles} * kKvBlock;
    return (length(block) + kPositions - 1) / kPositions;
  }

  // Points a worker's rows at their queries, and its state at their results.
  void begin(const Block& block, Scratch& scratch) const {
    const int64_t heads = int64_t{queries_.key_heads} * queries_.share;
    for (int i = 0; i < block.count; ++i) {
      for (int h = 0; h < block.share; ++h) {
        const int64_t row = block.rows[i];
        const int64_t head = int64_t{block.head} * queries_.share + block.first + h;
        const int r = i * block.share + h;
        scratch.q[r] = rounded_ + (row * heads + head) * width_;
        scratch.q_step[r] = steps_[row * heads + head];
        scratch.state.out[r] = queries_.out + row * queries_.out_stride + head * queries_.v_dim;
        scratch.part.out[r] = scratch.sums + int64_t{r} * queries_.v_dim;
      }
    }
  }

  // The state of one segment.
  void attend(const Block& block, int64_t segment, Scratch& scratch, const State& state) const {
    state.clear(block_rows(block), queries_.v_dim);
    const int64_t pages = (length(block) + kKvBlock - 1) / kKvBlock;
    const int64_t end = std::min(pages, (segment + 1) * kSegmentTiles);
    for (int64_t page = segment * kSegmentTiles; page < end; ++page) {
      int most = 0;
      for (int i = 0; i < block.count; ++i) {
        const int64_t seen = rows_.position[block.rows[i]] + 1 - page * kKvBlock;
        const int count = static_cast<int>(std::clamp<int64_t>(seen, 0, kKvBlock));
        most = std::max(most, count);
        std::fill_n(scratch.count + i * block.share, block.share, count);
      }
      const int row = block.rows[0];
      const uint8_t* tile = tiles_.tile(row, block.head, page, most, scratch.tile);
      const uint8_t* next = page + 1 < pages ? tiles_.place(row, block.head, page + 1) : nullptr;
      context_.kernels.attend_tile({block_rows(block), scratch.q, scratch.q_step, scratch.count,
                                    queries_.k_dim, queries_.v_dim, tile, next, state.out, state.top,
                                    state.total});
    }
  }

  void fold(const Block& block, const State& state, const State& part, bool is_last) const {
    context_.kernels.fold_tiles({block_rows(block), queries_.v_dim, state.out, state.top,
                                 state.total, part.out, part.top, part.total, is_last});
  }

 private:
  int64_t length(const Block& block) const {
    int64_t longest = 0;
    for (int i = 0; i < block.count; ++i)
      longest = std::max<int64_t>(longest, rows_.position[block.rows[i]] + 1);
    return longest;
  }

  Context& context_;
  const AttentionRows& rows_;
  const TileQueries& queries_;
  const TileSource& tiles_;
  int64_t width_ = 0;            // int16 per query row
  int16_t* rounded_ = nullptr;   // [m, heads, width]
  float* steps_ = nullptr;       // [m, heads]
};

// Blocks whose segments run in parallel: every state is kept, then each block folds its own.
void run_segments(Context& context, Job& job, const Block* blocks, int count, int v_dim,
                  Scratch* scratch) {
  Arena::Scope scope(context.arena);
  Arena& arena = context.arena;
  int64_t* first = arena.take<int64_t>(count + 1);  // segment of each block
  first[0] = 0;
  for (int b = 0; b < count; ++b) first[b + 1] = first[b] + job.segments(blocks[b]);
  State* states = arena.take<State>(first[count]);
  int* owner = arena.take<int>(first[count]);
  for (int b = 0; b < count; ++b) {
    const int rows = job.block_rows(blocks[b]);
    for (int64_t s = first[b]; s < first[b + 1]; ++s) {
      owner[s] = b;
      states[s] = State::take(arena, rows);
      float* sums = arena.take<float>(int64_t{rows} * v_dim);
      for (int r = 0; r < rows; ++r) states[s].out[r] = sums + int64_t{r} * v_dim;
    }
  }
  context.pool.run(first[count], [&](int64_t s, int worker) {
    const Block& block = blocks[owner[s]];
    job.begin(block, scratch[worker]);
    job.attend(block, s - first[owner[s]], scratch[worker], states[s]);
  });
  context.pool.run(count, [&](int64_t b, int worker) {
    const Block& block = blocks[b];
    job.begin(block, scratch[worker]);
    const State& state = scratch[worker].state;
    state.clear(job.block_rows(block), v_dim);
    for (int64_t s = first[b]; s < first[b + 1]; ++s)
      job.fold(block, state, states[s], s + 1 == first[b + 1]);
  });
}

// Blocks that each go through all of their segments.
void run_blocks(Context& context, Job& job, const Block* blocks, int count, int v_dim,
                Scratch* scratch) {
  // The last ones of a prompt see the most: they go first, so that no worker is left with one.
  context.pool.run(count, [&](int64_t index, int worker) {
    const Block& block = blocks[count - 1 - index];
    Scratch& own = scratch[worker];
    job.begin(block, own);
    own.state.clear(job.block_rows(block), v_dim);
    const int64_t segments = job.segments(block);
    for (int64_t s = 0; s < segments; ++s) {
      job.attend(block, s, own, own.part);
      job.fold(block, own.state, own.part, s + 1 == segments);
    }
  });
}

}  // namespace

ArithmeticSplit split_by_arithmetic(Context& context, const AttentionRows& rows) {
  ArithmeticSplit split{context.arena.take<int>(rows.m), 0, context.arena.take<int>(rows.m), 0};
  for (int row = 0; row < rows.m; ++row) {
    const bool is_float = rows.k_type == KvType::kF32 ||
                          (rows.rounding[row] == Rounding::kFloat && rows.k_type != KvType::kI16);
    if (is_float)
      split.floats[split.num_floats++] = row;
    else
      split.others[split.num_others++] = row;
  }
  return split;
}

int sort_by_sequence(const AttentionRows& rows, int* chosen, int count, RowRun* runs) {
  std::sort(chosen, chosen + count, [&](int a, int b) {
    return rows.sequence[a] != rows.sequence[b] ? rows.sequence[a] < rows.sequence[b] : a < b;
  });
  int made = 0;
  for (int i = 0; i < count; ++i) {
    if (i > 0 && rows.sequence[chosen[i]] == rows.sequence[chosen[i - 1]])
      ++runs[made - 1].count;
    else
      runs[made++] = {i, 1};
  }
  return made;
}

const uint8_t* RowTiles::tile(int row, int head, int64_t page, int count, uint8_t* scratch) const {
  const int k_dim = static_cast<int>(spec_.k_dim());
  alignas(64) float key[1024], value[1024];
  const int64_t k_bytes = kv_bytes(rows_.k_type, spec_.k_width);
  const int64_t v_bytes = kv_bytes(rows_.v_type, spec_.v_width);
  const uint8_t* keys = rows_.kv[row].k[page] + kv_bytes(rows_.k_type, head * k_dim);
  const uint8_t* values = rows_.kv[row].v[page] + kv_bytes(rows_.v_type, int64_t{head} * v_dim_);
  for (int slot = 0; slot < count; ++slot) {
    kernels_.load_kv(keys + slot * k_bytes, k_dim, rows_.k_type, key);
    if (spec_.v_width > 0) kernels_.load_kv(values + slot * v_bytes, v_dim_, rows_.v_type, value);
    kernels_.put_tile(key, k_dim, spec_.v_width > 0 ? value : key, v_dim_, slot, scratch);
  }
  return scratch;
}

void tile_attention(Context& context, const AttentionRows& rows, const int* chosen, int count,
                    const TileQueries& queries, const TileSource& tiles) {
  Arena::Scope scope(context.arena);
  Arena& arena = context.arena;
  Job job(context, rows, queries, tiles);
  job.round_queries(chosen, count);

  int* order = arena.take<int>(count);
  std::copy_n(chosen, count, order);
  RowRun* runs = arena.take<RowRun>(count);
  const int num_runs = sort_by_sequence(rows, order, count, runs);
  const int tokens = std::max(1, kBlockRows / queries.share);  // of a block
  const auto is_few = [&](const RowRun& run) { return run.count * queries.share <= kSplitRows; };
  // Where the segments of the short runs are fewer than workers, query heads are dealt out too.
  const int threads = context.pool.threads();
  int64_t segments = 0;
  for (int i = 0; i < num_runs; ++i) {
    if (is_few(runs[i]))
      segments += queries.key_heads * job.segments({order + runs[i].begin, runs[i].count, 0, 0, 0});
  }
  int parts = 1;
  if (segments > 0)
    parts = std::clamp<int64_t>((threads + segments - 1) / segments, 1,
                                std::max(queries.share / kPartHeads, 1));
  Block* few = arena.take<Block>(int64_t{count} * queries.key_heads * parts);
  Block* many = arena.take<Block>(int64_t{count} * queries.key_heads);
  int num_few = 0, num_many = 0;
  for (int i = 0; i < num_runs; ++i) {
    const int* first = order + runs[i].begin;
    if (is_few(runs[i])) {
      for (int head = 0; head < queries.key_heads; ++head) {
        for (int part = 0; part < parts; ++part) {
          const Range heads = piece(queries.share, parts, part);
          few[num_few++] = {first, runs[i].count, head, static_cast<int>(heads.begin),
                            static_cast<int>(heads.end - heads.begin)};
        }
      }
      continue;
    }
    for (int at = 0; at < runs[i].count; at += tokens) {
      for (int head = 0; head < queries.key_heads; ++head)
        many[num_many++] = {first + at, std::min(tokens, runs[i].count - at), head, 0, queries.share};
    }
  }

  Scratch* scratch = arena.take<Scratch>(threads);
  const int most = std::max(tokens * queries.share, kSplitRows);
  for (int t = 0; t < threads; ++t) scratch[t] = job.take_scratch(most);
  if (num_few > 0) run_segments(context, job, few, num_few, queries.v_dim, scratch);
  if (num_many > 0) run_blocks(context, job, many, num_many, queries.v_dim, scratch);
}

}  // namespace kt::cpu
