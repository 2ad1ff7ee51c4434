// The int4 product on tensor cores.
//
//            one strip of 64 columns: a warp's own           shared memory, kStages times:
//          +--------+--------+--------+--------+               A  [16 kRowTiles][64] x, swizzled
//     k16  | warp 0 | warp 1 | warp 2 | warp 3 |   k halves    W  [strip][k16][lane][16 bytes]
//     k16  | warp 4 | warp 5 | warp 6 | warp 7 |   of a unit   S  [group][strip][8][8] scales
//          +--------+--------+--------+--------+               O  the same of offsets
//           tile_n = 256 (128: two strips, four parts of k)
//
// A unit is 64 values of k of one tile. A block takes a stripe of units (stripes.h): copies run
// kStages - 1 units ahead of the multiplication. Each lane's 16 bytes of W hold its part of eight
// B fragments (m16n8k16), so a warp dequantises 4 words for 8 kRowTiles tensor-core steps.
//
// At the end of a tile the warps that share columns add their sums through shared memory, in order;
// where several blocks share the tile each leaves its part in the workspace (it stays in L2) and
// the last to arrive adds the parts in order of block: results do not depend on timing.
//
// Grouped (grouped.h), the tiles are those of several matrices, as many as the device finds in a list;
// a matrix has its scales and offsets behind its weights, and 16 rows of x and y of its own.
//
// Registers: 32 kRowTiles sums + 16 of W + 4 kRowTiles of A per thread; 255 at most.
#pragma once

#include "cuda/int4_gemm/dequantise.h"
#include "cuda/int4_gemm/int4_gemm.h"
#include "cuda/int4_gemm/stripes.h"
#include "cuda/quant_gemv/quant_gemv.h"

namespace kt::cuda {

template <class T, int kRowTiles, int kTileN, int kStages, bool kOffsets, bool kGrouped = false>
struct Int4Gemm {
  struct Params {
    Int4GemmParams p;
    Stripes stripes;
    int row_blocks;  // blocks of 16 kRowTiles rows
    // Grouped: what stands above of weights, rows and stripes is not read.
    const GemvItem* items = nullptr;
    const int32_t* num_items = nullptr;
    int64_t scales_at = 0, offsets_at = 0;  // bytes behind an item's weights
  };
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = kRowTiles == 1 ? 2 : 1;

  static constexpr int kUnit = 64;
  static constexpr int kRows = 16 * kRowTiles;
  static constexpr int kStrips = kTileN / 64;
  static constexpr int kDepthParts = 8 / kStrips;          // warps that share a strip
  static constexpr int kSteps = kUnit / 16 / kDepthParts;  // k16 steps of a warp per unit
  static constexpr int kMaxGroups = 2;                     // scales per column and unit
  static constexpr unsigned kABytes = kRows * kUnit * 2;
  static constexpr unsigned kWBytes = kTileN * kUnit / 2;
  static constexpr unsigned kSBytes = kMaxGroups * kTileN * 2;
  static constexpr unsigned kStageBytes = kABytes + kWBytes + kSBytes * (kOffsets ? 2 : 1);
  static constexpr unsigned kSumBytes = kRows * kTileN * 4;
  static constexpr unsigned kSharedBytes =
      (kStages * kStageBytes > kSumBytes ? kStages * kStageBytes : kSumBytes) + 16;
  // Two stages are Turing's; four are for every later card, those with the least included.
  static_assert(kSharedBytes <= most_shared_bytes(kStages == 2 ? 75 : 86));

  struct Sums {
    FragmentD d[kRowTiles][8];
  };

  /// An output tile: its columns, and its rows of x and y. What all tiles have in common is read
  /// from the parameters where it is needed: registers are scarce.
  struct Tile {
    int column_tile, first_row;
    int own_rows;                 // grouped, and so below
    Global<const uint8_t> matrix;
  };
  KT_DEVICE static Tile tile_at(const Params& params, int index) {
    if constexpr (kGrouped) {
      const int across = div_up(params.p.n, kTileN);
      const GemvItem item = Global<const GemvItem>(params.items)[index / across];
      return {index % across, item.first_tile * 8, item.tiles * 8,
              Global<const uint8_t>(item.weights)};
    } else {
      return {index / params.row_blocks, index % params.row_blocks * kRows, 0, {}};
    }
  }
  KT_DEVICE static bool has_row(const Params& params, const Tile& tile, int row) {
    return kGrouped ? row < tile.own_rows : tile.first_row + row < params.p.m;
  }
  KT_DEVICE static Global<const uint8_t> weights(const Params& params, const Tile& tile) {
    if constexpr (kGrouped) return tile.matrix;
    return Global<const uint8_t>(params.p.weights);
  }
  KT_DEVICE static Global<const T> scales(const Params& params, const Tile& tile) {
    if constexpr (kGrouped) return global_cast<const T>(tile.matrix + params.scales_at);
    return Global<const T>(static_cast<const T*>(params.p.scales));
  }
  KT_DEVICE static Global<const T> offsets(const Params& params, const Tile& tile) {
    if constexpr (kGrouped) return global_cast<const T>(tile.matrix + params.offsets_at);
    return Global<const T>(static_cast<const T*>(params.p.offsets));
  }
  /// Grouped, the device deals the units out, when it knows how many there are.
  KT_DEVICE static Stripes deal_out(const Params& params) {
    const int items = Global<const int32_t>(params.num_items)[0];
    Stripes s{items * div_up(params.p.n, kTileN), params.p.k / kUnit, 0};
    const int64_t units = static_cast<int64_t>(s.tiles) * s.tile_units, blocks = grid_x();
    s.per_block = max(kLeastUnits, static_cast<int>(div_up<int64_t>(units, blocks)));
    return s;
  }

  /// Where the 16-byte piece `piece` of row `row` of A lies: rows of 8 pieces, exchanged so that
  /// eight rows' equal pieces are in different banks.
  KT_DEVICE static unsigned a_at(int row, int piece) { return row * 64 + (piece ^ (row & 7)) * 8; }

  KT_DEVICE static void load_unit(const Params& params, int stage, const Tile& tile, int unit) {
    const Int4GemmParams& p = params.p;
    const int tid = thread_id();
    const unsigned base = stage * kStageBytes;
    const Global<const T> x(static_cast<const T*>(p.x));
    const Shared<T> a = shared_at<T>(base);
    KT_UNROLL
    for (int i = tid; i < kRows * 8; i += kThreads) {
      const int row = i / 8, piece = i % 8;
      const bool present = has_row(params, tile, row);
      const int64_t at =
          static_cast<int64_t>(tile.first_row + (present ? row : 0)) * p.k + unit * kUnit;
      async_copy16(a + a_at(row, piece), x + (at + piece * 8), present);
    }
    const int strips = div_up(p.n, 64), units = p.k / kUnit;
    const Shared<Words4> w = shared_at<Words4>(base + kABytes);
    KT_UNROLL
    for (int i = tid; i < static_cast<int>(kWBytes / 16); i += kThreads) {
      const int strip = tile.column_tile * kStrips + i / 128;
      const bool present = strip < strips;
      const int64_t at = (static_cast<int64_t>(present ? strip : 0) * units + unit) * 2048;
      async_copy16_once(w + i, weights(params, tile) + (at + i % 128 * 16), present);
    }
    const int groups = p.group < kUnit ? kUnit / p.group : 1;
    const int first_group = unit * kUnit / p.group;
    for (int i = tid; i < groups * kStrips * 8; i += kThreads) {
      const int strip = tile.column_tile * kStrips + i / 8 % kStrips;
      const bool present = strip < strips;
      const int64_t at =
          ((first_group + i / 8 / kStrips) * int64_t{strips} + (present ? strip : 0)) * 64 +
          i % 8 * 8;
      async_copy16(shared_at<T>(base + kABytes + kWBytes) + i * 8,
                   scales(params, tile) + at, present);
      if constexpr (kOffsets)
        async_copy16(shared_at<T>(base + kABytes + kWBytes + kSBytes) + i * 8,
                     offsets(params, tile) + at, present);
    }
  }

  KT_DEVICE static void multiply_unit(const Params& params, int stage, Sums& sums) {
    const int lane = lane_id(), strip = warp_id() % kStrips, part = warp_id() / kStrips;
    const unsigned base = stage * kStageBytes;
    const Shared<T> a = shared_at<T>(base);
    const Shared<Words4> w = shared_at<Words4>(base + kABytes);
    const Shared<Words4> s = shared_at<Words4>(base + kABytes + kWBytes);
    const Shared<Words4> o = shared_at<Words4>(base + kABytes + kWBytes + kSBytes);
    KT_UNROLL
    for (int i = 0; i < kSteps; ++i) {
      const int step = part * kSteps + i;
      FragmentA left[kRowTiles];
      KT_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        const Words4 v = load_matrix4(a + a_at(r * 16 + lane % 16, step * 2 + lane / 16));
        left[r] = {{v.x[0], v.x[1], v.x[2], v.x[3]}};
      }
      const Words4 codes = w[(strip * 4 + step) * 32 + lane];
      const int group = params.p.group < kUnit ? step * 16 / params.p.group : 0;
      const Words4 scale = s[(group * kStrips + strip) * 8 + lane / 4];
      Words4 offset{};
      if constexpr (kOffsets) offset = o[(group * kStrips + strip) * 8 + lane / 4];
      KT_UNROLL
      for (int j = 0; j < 4; ++j) {  // a word: two subtiles of 8 columns
        uint32_t pairs[4];
        int4_pairs<T>(codes.x[j], pairs);
        KT_UNROLL
        for (int sub = 0; sub < 2; ++sub) {
          const unsigned pick = sub ? 0x3232 : 0x1010;  // this column's scale, twice
          const uint32_t scale2 = byte_permute(scale.x[j], 0, pick);
          FragmentB right;
          KT_UNROLL
          for (int h = 0; h < 2; ++h)
            right.x[h] =
                kOffsets ? fma2<T>(pairs[2 * sub + h], scale2, byte_permute(offset.x[j], 0, pick))
                         : mul2<T>(pairs[2 * sub + h], scale2);
          KT_UNROLL
          for (int r = 0; r < kRowTiles; ++r) mma<T>(sums.d[r][2 * j + sub], left[r], right);
        }
      }
    }
  }

  /// The warps' sums, added over the parts of k in order, to shared memory: [kRows][kTileN].
  KT_DEVICE static void add_warps(const Sums& sums) {
    const int lane = lane_id(), strip = warp_id() % kStrips, part = warp_id() / kStrips;
    const Shared<float> out = shared_at<float>(0);
    for (int turn = 0; turn < kDepthParts; ++turn) {
      sync();
      if (turn != part) continue;
      KT_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        KT_UNROLL
        for (int sub = 0; sub < 8; ++sub) {
          KT_UNROLL
          for (int half = 0; half < 2; ++half) {
            const int row = r * 16 + lane / 4 + 8 * half;
            const Shared<Float2> at =
                shared_cast<Float2>(out + (row * kTileN + strip * 64 + sub * 8 + lane % 4 * 2));
            Float2 v{{sums.d[r][sub].x[2 * half], sums.d[r][sub].x[2 * half + 1]}};
            if (turn > 0) {
              const Float2 before = at[0];
              v.x[0] += before.x[0], v.x[1] += before.x[1];
            }
            at[0] = v;
          }
        }
      }
    }
    sync();
  }

  KT_DEVICE static void store(const Params& params, const Tile& tile, int row, int column,
                              Float2 v) {
    const int global_row = tile.first_row + row;
    const int global_column = tile.column_tile * kTileN + column;
    if (!has_row(params, tile, row) || global_column >= params.p.n) return;
    const int64_t at = static_cast<int64_t>(global_row) * params.p.n + global_column;
    if (params.p.row_scales) {
      const float scale = Global<const float>(params.p.row_scales)[global_row];
      const Float2 scaled{{v.x[0] * scale, v.x[1] * scale}};
      const Global<float> y(static_cast<float*>(params.p.y));
      if (params.p.n % 2 == 0) {
        global_cast<Float2>(y)[at / 2] = scaled;
      } else {  // a vocabulary may be odd
        y[at] = scaled.x[0];
        if (global_column + 1 < params.p.n) y[at + 1] = scaled.x[1];
      }
      return;
    }
    Global<uint32_t>(static_cast<uint32_t*>(params.p.y))[at / 2] = pack2<T>(v.x[0], v.x[1]);
  }

  KT_DEVICE static void finish_tile(const Params& params, const Stripes& stripes, int index) {
    const Tile tile = tile_at(params, index);  // anew: nothing of it has to last
    const int participants = stripes.participants(index);
    const Shared<Float2> sums = shared_at<Float2>(0);
    constexpr int kPairs = kRows * kTileN / 2;
    if (participants == 1) {
      for (int i = thread_id(); i < kPairs; i += kThreads)
        store(params, tile, i / (kTileN / 2), i % (kTileN / 2) * 2, sums[i]);
      return;
    }
    const Global<Float2> workspace(reinterpret_cast<Float2*>(params.p.workspace));
    const Global<Float2> mine =
        workspace + static_cast<int64_t>(stripes.slot(block_x(), index)) * kPairs;
    for (int i = thread_id(); i < kPairs; i += kThreads) {
      const Float2 v = sums[i];
      mine[i] = v;
    }
    fence();
    sync();
    const Shared<int> is_last = shared_at<int>(kSharedBytes - 16);
    if (thread_id() == 0) {
      const Global<int32_t> counter = Global<int32_t>(params.p.counters) + index;
      const bool last = atomic_add(counter, 1) == participants - 1;
      if (last) counter[0] = 0;
      is_last[0] = last;
    }
    sync();
    if (int{is_last[0]} == 0) return;
    fence();
    const int first = stripes.first_block(index);
    for (int i = thread_id(); i < kPairs; i += kThreads) {
      Float2 total{{0, 0}};
      for (int b = first; b < first + participants; ++b) {
        const Float2 v = (workspace + static_cast<int64_t>(stripes.slot(b, index)) * kPairs)[i];
        total.x[0] += v.x[0], total.x[1] += v.x[1];
      }
      store(params, tile, i / (kTileN / 2), i % (kTileN / 2) * 2, total);
    }
  }

  KT_DEVICE static void run(const Params& params) {
    if constexpr (kGrouped)
      run(params, deal_out(params));
    else
      run(params, params.stripes);
  }
  KT_DEVICE static void run(const Params& params, const Stripes& stripes) {
    const int64_t all = static_cast<int64_t>(stripes.tiles) * stripes.tile_units;
    int64_t unit = static_cast<int64_t>(block_x()) * stripes.per_block;
    const int64_t end = unit + stripes.per_block < all ? unit + stripes.per_block : all;
    while (unit < end) {
      const int index = static_cast<int>(unit / stripes.tile_units);
      const int first = static_cast<int>(unit % stripes.tile_units);
      const int count = static_cast<int>(
          end - unit < stripes.tile_units - first ? end - unit : stripes.tile_units - first);
      const Tile tile = tile_at(params, index);
      Sums sums{};
      KT_UNROLL
      for (int i = 0; i < kStages - 1; ++i) {
        if (i < count) load_unit(params, i, tile, first + i);
        async_commit();
      }
      for (int i = 0; i < count; ++i) {
        async_wait<kStages - 2>();
        sync();  // everyone's copies of unit i are there, and unit i - 1 is no longer read
        const int ahead = i + kStages - 1;
        if (ahead < count) load_unit(params, ahead % kStages, tile, first + ahead);
        async_commit();
        multiply_unit(params, i % kStages, sums);
      }
      async_wait<0>();
      add_warps(sums);
      finish_tile(params, stripes, index);
      sync();  // the next tile's copies overwrite the sums
      unit += count;
    }
  }
};

}  // namespace kt::cuda
