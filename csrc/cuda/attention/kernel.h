// One block: kRows (token, head) pairs that share a key head, over one split of the positions.
//
//   shared memory    Q [kRows][kQk]        once
//                    K [kPositions][kQk]   kStages times, V [kPositions][kV] beside it (MLA: in it)
//                    P [kRows][kPositions] probabilities of the tile in hand
//                    row maxima of every warp
//   rows are padded by 16 bytes, so that eight rows' equal pieces lie in different banks
//
// Per tile of positions:  S = Q K^T    warp w: positions 8 w ... 8 w + 7, all rows
//                         maxima meet in shared memory; P = exp2(S - max), sums stay with lanes
//                         O = O a + P V   warp w: columns w kV / warps ..., all rows
// A warp's parts of S and O have their rows on the same lanes, so the factor a needs no exchange.
//
// Registers: O is kRows x kV / warps floats per warp: 32 a thread for 16 rows of MLA, 128 for 64.
#pragma once

#include <type_traits>

#include "cuda/attention/flash.h"
#include "cuda/common/device.h"

namespace kt::cuda {

template <class T, class Cache, int kQk, int kV, bool kSharedKv, int kRows, int kPositions,
          int kStages>
struct Flash {
  struct Params {
    FlashParams p;
    int splits;
    int row_tiles;  // per key head and sequence
  };
  static constexpr int kWarps = kPositions / 8;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kMinBlocks = 1;
  static constexpr int kRowTiles = kRows / 16;
  static constexpr int kColumnTiles = kV / kWarps / 8;  // of a warp's part of O
  static_assert(kQk % 32 == 0 && kV % (8 * kWarps) == 0 && kPositions % 32 == 0);

  static constexpr int kQRow = kQk + 8, kVRow = kV + 8, kPRow = kPositions + 8;
  static constexpr unsigned kQBytes = kRows * kQRow * 2;
  static constexpr unsigned kKBytes = kPositions * kQRow * 2;
  static constexpr unsigned kStageBytes = kKBytes + (kSharedKv ? 0 : kPositions * kVRow * 2);
  static constexpr unsigned kStagesAt = kQBytes;
  static constexpr unsigned kPAt = kStagesAt + kStages * kStageBytes;
  static constexpr unsigned kMaxAt = kPAt + kRows * kPRow * 2;
  static constexpr unsigned kSharedBytes = kMaxAt + kWarps * kRows * 4;

  struct State {
    FragmentD o[kRowTiles][kColumnTiles];
    float max[kRowTiles][2], sum[kRowTiles][2];  // of rows lane / 4 and + 8
  };

  /// What the block works on.
  struct Work {
    int token, tokens, length;  // the sequence's first token, its tokens and cached positions
    int kv_head, first_row;     // row r of the sequence: token r / group, head r % group
    int begin, end;             // positions
  };

  KT_DEVICE static int group(const FlashParams& p) { return p.heads / p.kv_heads; }

  /// Copies kWidth values of each position to rows of shared memory, kRow apart; FP8 values become
  /// T's on the way.
  template <class From, int kWidth, int kRow>
  KT_DEVICE static void load_tile(const FlashParams& p, const Work& w, const void* cache,
                                  const uint8_t* exponents, Shared<T> to, int first) {
    const Global<const From> from(static_cast<const From*>(cache));
    const Global<const int32_t> pages =
        Global<const int32_t>(p.pages) + static_cast<int64_t>(block_z()) * p.max_pages;
    for (int i = thread_id(); i < kPositions * (kWidth / 8); i += kThreads) {
      const int row = i / (kWidth / 8), piece = i % (kWidth / 8) * 8, position = first + row;
      const bool present = position < w.end;
      const int page = present ? int{pages[position / kPagePositions]} : 0;
      const int64_t at =
          (static_cast<int64_t>(page) * kPagePositions + position % kPagePositions) * p.kv_heads +
          w.kv_head;
      const Shared<T> target = to + (row * kRow + piece);
      if constexpr (sizeof(From) == 2) {
        async_copy16(target, from + (present ? at * kWidth + piece : piece), present);
      } else {
        Words2 bytes{};
        float scale = 1;
        if (present) {
          bytes = global_cast<const Words2>(from + (at * kWidth + piece))[0];
          const uint8_t exponent = Global<const uint8_t>(exponents)[at];
          scale = float_of(static_cast<uint32_t>(exponent) << 23);
        }
        Words4 values;
        KT_UNROLL
        for (int pair = 0; pair < 4; ++pair)
          values.x[pair] = unpack_fp8<T>(bytes.x[pair / 2] >> 16 * (pair % 2) & 0xFFFF, scale);
        shared_cast<Words4>(target)[0] = values;
      }
    }
  }

  KT_DEVICE static void load_positions(const FlashParams& p, const Work& w, int stage, int first) {
    const Shared<T> k = shared_at<T>(kStagesAt + stage * kStageBytes);
    if constexpr (kSharedKv && sizeof(Cache) == 1) {
      load_tile<Cache, kV, kQRow>(p, w, p.k, p.k_exponents, k, first);
      load_tile<T, kQk - kV, kQRow>(p, w, p.k_rope, nullptr, k + kV, first);
    } else {
      load_tile<std::conditional_t<sizeof(Cache) == 1, T, Cache>, kQk, kQRow>(p, w, p.k, nullptr, k,
                                                                             first);
    }
    if constexpr (!kSharedKv)
      load_tile<Cache, kV, kVRow>(p, w, p.v, p.v_exponents, k + kPositions * kQRow, first);
  }

  KT_DEVICE static void load_queries(const FlashParams& p, const Work& w) {
    const Shared<T> q = shared_at<T>(0);
    const Global<const T> from(static_cast<const T*>(p.q));
    const int rows = w.tokens * group(p);
    for (int i = thread_id(); i < kRows * (kQk / 8); i += kThreads) {
      const int row = i / (kQk / 8), piece = i % (kQk / 8), r = w.first_row + row;
      const bool present = r < rows;
      const int64_t head = static_cast<int64_t>(w.token + (present ? r / group(p) : 0)) * p.heads +
                           w.kv_head * group(p) + (present ? r % group(p) : 0);
      async_copy16(q + (row * kQRow + piece * 8), from + (head * kQk + piece * 8), present);
    }
  }

  KT_DEVICE static void tile(const FlashParams& p, const Work& w, int stage, int first,
                             State& state) {
    const int lane = lane_id(), warp = warp_id();
    const Shared<T> q = shared_at<T>(0), k = shared_at<T>(kStagesAt + stage * kStageBytes);
    const Shared<T> v = kSharedKv ? k : shared_at<T>(kStagesAt + stage * kStageBytes + kKBytes);
    constexpr int kValueRow = kSharedKv ? kQRow : kVRow;
    // ---- S = Q K^T ----
    FragmentD s[kRowTiles]{};
    KT_UNROLL
    for (int d = 0; d < kQk; d += 32) {
      const Words4 keys = load_matrix4(k + ((warp * 8 + lane % 8) * kQRow + d + lane / 8 * 8));
      KT_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        KT_UNROLL
        for (int half = 0; half < 2; ++half) {
          const Words4 a =
              load_matrix4(q + ((r * 16 + lane % 16) * kQRow + d + half * 16 + lane / 16 * 8));
          mma<T>(s[r], {{a.x[0], a.x[1], a.x[2], a.x[3]}},
                 {{keys.x[2 * half], keys.x[2 * half + 1]}});
        }
      }
    }
    // ---- mask, maxima of the rows over all warps ----
    const Shared<float> maxima = shared_at<float>(kMaxAt);
    const float scale = p.scale * 1.44269504f;  // exp2 instead of exp
    const int rows = w.tokens * group(p);
    KT_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      KT_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int row = w.first_row + r * 16 + lane / 4 + 8 * half;
        const int last = row < rows ? w.length - w.tokens + row / group(p) : -1;
        float top = -infinity();
        KT_UNROLL
        for (int i = 0; i < 2; ++i) {
          const int position = first + warp * 8 + lane % 4 * 2 + i;
          float& score = s[r].x[2 * half + i];
          score = position <= last && position < w.end ? score * scale : -infinity();
          top = max(top, score);
        }
        top = max(top, shuffle_xor(top, 1u));
        top = max(top, shuffle_xor(top, 2u));
        if (lane % 4 == 0) maxima[warp * kRows + r * 16 + lane / 4 + 8 * half] = top;
      }
    }
    sync();
    // ---- P = exp2(S - max), O and the sums to the new maximum ----
    const Shared<T> probabilities = shared_at<T>(kPAt);
    KT_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      KT_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int row = r * 16 + lane / 4 + 8 * half;
        float top = state.max[r][half];
        for (int i = 0; i < kWarps; ++i) top = max(top, float(maxima[i * kRows + row]));
        const float origin = top == -infinity() ? 0.0f : top;  // a row that sees nothing yet
        const float factor = exp2_fast(state.max[r][half] - origin);
        state.max[r][half] = top;
        const float p0 = exp2_fast(s[r].x[2 * half] - origin);
        const float p1 = exp2_fast(s[r].x[2 * half + 1] - origin);
        state.sum[r][half] = state.sum[r][half] * factor + p0 + p1;
        shared_cast<uint32_t>(probabilities + (row * kPRow + warp * 8 + lane % 4 * 2))[0] =
            pack2<T>(p0, p1);
        KT_UNROLL
        for (int c = 0; c < kColumnTiles; ++c) {
          state.o[r][c].x[2 * half] *= factor;
          state.o[r][c].x[2 * half + 1] *= factor;
        }
      }
    }
    sync();
    // ---- O += P V ----
    KT_UNROLL
    for (int step = 0; step < kPositions; step += 32) {
      FragmentA a[kRowTiles][2];
      KT_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        KT_UNROLL
        for (int half = 0; half < 2; ++half) {
          const Words4 x = load_matrix4(
              probabilities + ((r * 16 + lane % 16) * kPRow + step + half * 16 + lane / 16 * 8));
          a[r][half] = {{x.x[0], x.x[1], x.x[2], x.x[3]}};
        }
      }
      KT_UNROLL
      for (int c = 0; c < kColumnTiles; ++c) {
        const int column = (warp * kColumnTiles + c) * 8;
        const Words4 b = load_matrix4_transposed(v + ((step + lane) * kValueRow + column));
        KT_UNROLL
        for (int r = 0; r < kRowTiles; ++r) {
          mma<T>(state.o[r][c], a[r][0], {{b.x[0], b.x[1]}});
          mma<T>(state.o[r][c], a[r][1], {{b.x[2], b.x[3]}});
        }
      }
    }
  }

  /// Row sums over lanes and warps, then the output or this split's part of it.
  KT_DEVICE static void finish(const Params& params, const Work& w, State& state) {
    const FlashParams& p = params.p;
    const int lane = lane_id(), warp = warp_id(), rows = w.tokens * group(p);
    const Shared<float> sums = shared_at<float>(kMaxAt);
    sync();  // the last maxima were read
    KT_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      KT_UNROLL
      for (int half = 0; half < 2; ++half) {
        float sum = state.sum[r][half];
        sum += shuffle_xor(sum, 1u);
        sum += shuffle_xor(sum, 2u);
        if (lane % 4 == 0) sums[warp * kRows + r * 16 + lane / 4 + 8 * half] = sum;
      }
    }
    sync();
    KT_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      KT_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int local = r * 16 + lane / 4 + 8 * half, row = w.first_row + local;
        if (row >= rows) continue;
        float sum = 0;
        for (int i = 0; i < kWarps; ++i) sum += sums[i * kRows + local];
        const int64_t head = static_cast<int64_t>(w.token + row / group(p)) * p.heads +
                             w.kv_head * group(p) + row % group(p);
        const float factor = params.splits == 1 ? 1.0f / sum : 1.0f;
        const int64_t part = static_cast<int64_t>(block_x()) * p.total_tokens * p.heads + head;
        KT_UNROLL
        for (int c = 0; c < kColumnTiles; ++c) {
          const int column = (warp * kColumnTiles + c) * 8 + lane % 4 * 2;
          const float o0 = state.o[r][c].x[2 * half] * factor;
          const float o1 = state.o[r][c].x[2 * half + 1] * factor;
          if (params.splits == 1) {
            Global<uint32_t>(static_cast<uint32_t*>(p.out))[(head * kV + column) / 2] =
                pack2<T>(o0, o1);
          } else {
            Global<Float2>(reinterpret_cast<Float2*>(p.partial))[(part * kV + column) / 2] = {
                {o0, o1}};
          }
        }
        if (params.splits > 1 && warp == 0 && lane % 4 == 0) {
          const int64_t stats = static_cast<int64_t>(params.splits) * p.total_tokens * p.heads * kV;
          Global<Float2>(reinterpret_cast<Float2*>(p.partial + stats))[part] = {
              {state.max[r][half], sum}};
        }
      }
    }
  }

  KT_DEVICE static void run(const Params& params) {
    const FlashParams& p = params.p;
    const Global<const int32_t> first_token(p.first_token);
    Work w;
    w.token = first_token[block_z()];
    w.tokens = first_token[block_z() + 1] - w.token;
    w.length = Global<const int32_t>(p.kv_length)[block_z()];
    w.kv_head = block_y() / params.row_tiles;
    w.first_row = block_y() % params.row_tiles * kRows;
    if (w.first_row >= w.tokens * group(p)) return;
    const int per_split = round_up(div_up(w.length, params.splits), kPositions);
    w.begin = block_x() * per_split;
    // No row of this tile sees beyond its last token's position.
    const int last_row = min(w.first_row + kRows, w.tokens * group(p)) - 1;
    w.end = min(min(w.begin + per_split, w.length), w.length - w.tokens + last_row / group(p) + 1);

    State state{};
    KT_UNROLL
    for (int r = 0; r < kRowTiles; ++r) state.max[r][0] = state.max[r][1] = -infinity();
    const int tiles = w.end > w.begin ? div_up(w.end - w.begin, kPositions) : 0;
    load_queries(p, w);
    KT_UNROLL
    for (int i = 0; i < kStages - 1; ++i) {
      if (i < tiles) load_positions(p, w, i, w.begin + i * kPositions);
      async_commit();
    }
    for (int i = 0; i < tiles; ++i) {
      if (i > 0) sync();  // everyone is done with the tile whose place the next one takes
      const int ahead = i + kStages - 1;
      if (ahead < tiles) load_positions(p, w, ahead % kStages, w.begin + ahead * kPositions);
      async_commit();
      async_wait<kStages - 1>();
      sync();
      tile(p, w, i % kStages, w.begin + i * kPositions, state);
    }
    async_commit();  // of a split without positions: its queries are still under way
    async_wait<0>();
    finish(params, w, state);
  }
};

/// Adds the splits' parts: a warp per (token, head), a lane every 32nd column.
template <class T>
struct FlashCombine {
  struct Params {
    FlashParams p;
    int splits;
  };
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 1;
  KT_DEVICE static void run(const Params& params) {
    const FlashParams& p = params.p;
    const int64_t heads = static_cast<int64_t>(p.total_tokens) * p.heads;
    const int64_t head = static_cast<int64_t>(block_x()) * 4 + warp_id();
    if (head >= heads) return;
    const Global<const float> o(p.partial);
    const Global<const Float2> stats(
        reinterpret_cast<const Float2*>(p.partial + params.splits * heads * p.v_dim));
    float top = -infinity(), sum = 0;
    for (int s = 0; s < params.splits; ++s) {
      const Float2 part = stats[s * heads + head];
      top = max(top, part.x[0]);
    }
    for (int s = 0; s < params.splits; ++s) {
      const Float2 part = stats[s * heads + head];
      sum += part.x[1] * exp2_fast(part.x[0] - top);
    }
    const Global<T> out(static_cast<T*>(p.out));
    for (int column = lane_id(); column < p.v_dim; column += 32) {
      float value = 0;
      for (int s = 0; s < params.splits; ++s) {
        const Float2 part = stats[s * heads + head];
        value += o[(s * heads + head) * p.v_dim + column] * exp2_fast(part.x[0] - top);
      }
      out[head * p.v_dim + column] = from_float<T>(value / sum);
    }
  }
};

template <class T, class Cache, int kQk, int kV, bool kSharedKv, int kRows, int kPositions,
          int kStages>
bool try_flash(const FlashParams& p, const FlashTile& tile) {
  using Kernel = Flash<T, Cache, kQk, kV, kSharedKv, kRows, kPositions, kStages>;
  if (p.qk_dim != kQk || p.v_dim != kV || (p.v == nullptr) != kSharedKv || tile.rows != kRows ||
      tile.positions != kPositions || tile.stages != kStages)
    return false;
  const int row_tiles = div_up(p.max_tokens * (p.heads / p.kv_heads), kRows);
  launch<Kernel>({.grid_x = static_cast<unsigned>(tile.splits),
                  .grid_y = static_cast<unsigned>(row_tiles * p.kv_heads),
                  .grid_z = static_cast<unsigned>(p.sequences),
                  .threads = Kernel::kThreads,
                  .shared_bytes = Kernel::kSharedBytes},
                 {p, tile.splits, row_tiles}, p.stream);
  return true;
}

/// Of the cache's two types.
template <int kQk, int kV, bool kSharedKv, int kRows, int kPositions, int kStages>
bool try_flash_f16(const FlashParams& p, const FlashTile& tile) {
  if (p.type != AttentionType::kF16) return false;
  if (p.cache == CacheType::kFp8)
    return try_flash<half_t, fp8_t, kQk, kV, kSharedKv, kRows, kPositions, kStages>(p, tile);
  return try_flash<half_t, half_t, kQk, kV, kSharedKv, kRows, kPositions, kStages>(p, tile);
}

/// The four pairs of types; FP8 caches are of one kind.
template <int kQk, int kV, bool kSharedKv, int kRows, int kPositions, int kStages>
bool try_flash_types(const FlashParams& p, const FlashTile& tile) {
  const bool bf16 = p.type == AttentionType::kBf16, fp8 = p.cache == CacheType::kFp8;
  if (bf16 && fp8)
    return try_flash<bf16_t, fp8_t, kQk, kV, kSharedKv, kRows, kPositions, kStages>(p, tile);
  if (bf16)
    return try_flash<bf16_t, bf16_t, kQk, kV, kSharedKv, kRows, kPositions, kStages>(p, tile);
  return try_flash_f16<kQk, kV, kSharedKv, kRows, kPositions, kStages>(p, tile);
}

}  // namespace kt::cuda
