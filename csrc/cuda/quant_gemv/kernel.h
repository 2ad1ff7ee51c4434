// The product for few tokens, on tensor cores with the weights as the left operand: 16 rows of R16
// are the 16 rows of m16n8k16, 8 tokens its 8 columns, so that up to 8 tokens cost what one does.
//
//   block of 8 warps; kDepth of them share 16 rows ("a row group"), chunk c of k belongs to warp
//   c % kDepth; blocks go through (item, row group) pairs in steps of the grid
//
//   per warp, in shared memory:   `stages` chunks of weights, copied ahead across row groups
//                                 [groups][16] scale and minimum of the chunk in hand, decoded once
//
// Codes are multiplied as exact halves; the scale of a group is applied to its sum in float, so the
// weights lose nothing and activations only their rounding to 11 bits. A minimum meets the sum of
// the activations (Prepared::sums). The warps' sums of a row group are added in order of warp.
#pragma once

#include "cuda/quant_gemv/quant_gemv.h"
#include "cuda/quant_gemv/source.h"

namespace kt::cuda {

template <class Source, int kTokenTiles, int kDepth>
struct QuantGemv {
  struct Params : GemvParams {
    int stages;  // chunks of a warp in shared memory: as many as the card has room for
  };
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = kTokenTiles == 1 ? 2 : 1;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kRowGroups = kWarps / kDepth;  // in hand at a time
  static constexpr int kMostStages = Source::kChunkBytes > 3000 ? 3 : 4;
  static constexpr int kGroups = kChunk / Source::kGroup;
  static constexpr unsigned kTableBytes = kGroups * 16 * sizeof(Float2);
  static constexpr unsigned kSumBytes = kWarps * kTokenTiles * 128 * 4;
  static constexpr unsigned kTablesAt = kSumBytes;
  static constexpr unsigned kRingAt = kTablesAt + kWarps * kTableBytes;
  static constexpr unsigned shared_bytes(int stages) {
    return kRingAt + kWarps * stages * Source::kChunkBytes;
  }
  // One stage fits every card, Turing included.
  static_assert(shared_bytes(1) <= most_shared_bytes(75));

  /// The sequence of chunks a warp goes through.
  struct Cursor {
    int64_t pair;  // item * row groups + row group
    int chunk;
  };

  struct Sums {
    FragmentD d[kTokenTiles];
  };

  KT_DEVICE static int chunks(const Params& p) { return div_up(p.k, kChunk); }
  KT_DEVICE static int part() { return warp_id() % kDepth; }
  KT_DEVICE static int64_t first_pair() {
    return static_cast<int64_t>(block_x()) * kRowGroups + warp_id() / kDepth;
  }
  KT_DEVICE static int64_t step() { return static_cast<int64_t>(grid_x()) * kRowGroups; }

  KT_DEVICE static void advance(const Params& p, Cursor& c) {
    c.chunk += kDepth;
    if (c.chunk >= chunks(p)) c = {c.pair + step(), part()};
  }
  KT_DEVICE static Shared<uint32_t> stage(const Params& p, int index) {
    return shared_at<uint32_t>(kRingAt +
                               (warp_id() * p.stages + index) * unsigned{Source::kChunkBytes});
  }
  KT_DEVICE static int next(const Params& p, int index) {
    return index + 1 == p.stages ? 0 : index + 1;
  }
  /// Until the oldest of the stages is there.
  KT_DEVICE static void wait(const Params& p) {
    if (p.stages == 1) return async_wait<0>();
    if (p.stages == 2) return async_wait<1>();
    if (p.stages == 3) return async_wait<2>();
    async_wait<3>();
  }
  KT_DEVICE static void load(const Params& p, const Cursor& c, int64_t pairs, int index) {
    if (c.pair < pairs && c.chunk < chunks(p)) {
      const int row_groups = div_up(p.n, 16);
      const GemvItem item = Global<const GemvItem>(p.items)[c.pair / row_groups];
      Source::load(stage(p, index), Global<const uint8_t>(item.weights), p.n, p.k,
                   static_cast<int>(c.pair % row_groups), c.chunk);
    }
    async_commit();
  }

  /// Decodes the chunk's scales, every one by one lane.
  KT_DEVICE static void decode_scales(const Params& p, const GemvItem& item, int row_group,
                                      int chunk, Shared<uint32_t> weights) {
    const Shared<Float2> table = shared_at<Float2>(kTablesAt + warp_id() * kTableBytes);
    const int groups = min(kChunk, p.k - chunk * kChunk) / Source::kGroup;
    KT_UNROLL
    for (int i = lane_id(); i < kGroups * 16; i += 32) {
      if (i / 16 >= groups) break;
      float block_scale = 0;
      if (item.block_scales) {
        const int column = (chunk * kChunk + i / 16 * Source::kGroup) / 128;
        block_scale = Global<const float>(
            item.block_scales)[static_cast<int64_t>(row_group * 16 / 128) * div_up(p.k, 128) +
                               column];
      }
      table[i] = {{Source::scale(weights, i % 16, i / 16, block_scale),
                   Source::kHasMin ? Source::minimum(weights, i % 16, i / 16) : 0.0f}};
    }
  }

  KT_DEVICE static void multiply(const Params& p, int tile, int tiles, int chunk,
                                 Shared<const uint32_t> weights, Sums& sums) {
    const int lane = lane_id(), g = lane / 4, t = lane % 4;
    const Shared<const Float2> table = shared_at<Float2>(kTablesAt + warp_id() * kTableBytes);
    const Global<const Words2> x(reinterpret_cast<const Words2*>(p.x.fragments));
    const Global<const Float2> x_sums(reinterpret_cast<const Float2*>(p.x.sums));
    const int runs = p.k / 16, first_run = chunk * (kChunk / 16);
    const int groups = min(kChunk, p.k - chunk * kChunk) / Source::kGroup;
    KT_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      if (group >= groups) break;
      FragmentD dots[kTokenTiles]{};
      KT_UNROLL
      for (int run = 0; run < Source::kGroup / 16; ++run) {
        const int v = group * Source::kGroup + run * 16 + 4 * t;
        // A's columns 2t, 2t+1, 2t+8, 2t+9 stand for values 4t ... 4t + 3, and so do B's rows.
        // Lanes with t >= 2 read their rows the other way round: no two lanes on one bank.
        const int swap = t / 2 * 8;
        FragmentA a;
        uint32_t first[2], second[2];
        Source::pair(weights, g + swap, v, &first[0], &first[1]);
        Source::pair(weights, g + 8 - swap, v, &second[0], &second[1]);
        KT_UNROLL
        for (int h = 0; h < 2; ++h) {
          a.x[2 * h] = swap ? second[h] : first[h];
          a.x[2 * h + 1] = swap ? first[h] : second[h];
        }
        KT_UNROLL
        for (int i = 0; i < kTokenTiles; ++i) {
          if (i >= tiles) break;
          const int64_t at = static_cast<int64_t>(tile + i) * runs + first_run +
                             group * (Source::kGroup / 16) + run;
          const Words2 b = x[at * 32 + lane];
          mma<half_t>(dots[i], a, {{b.x[0], b.x[1]}});
        }
      }
      const Float2 upper = table[group * 16 + g], lower = table[group * 16 + g + 8];
      KT_UNROLL
      for (int i = 0; i < kTokenTiles; ++i) {
        if (i >= tiles) break;
        float* sum = sums.d[i].x;
        KT_UNROLL
        for (int j = 0; j < 4; ++j)
          sum[j] = fma(j < 2 ? upper.x[0] : lower.x[0], dots[i].x[j], sum[j]);
        if constexpr (Source::kHasMin) {
          KT_UNROLL
          for (int run = 0; run < Source::kGroup / 16; ++run) {
            const int64_t at = static_cast<int64_t>(tile + i) * runs + first_run +
                               group * (Source::kGroup / 16) + run;
            const Float2 s = x_sums[at * 4 + t];
            KT_UNROLL
            for (int j = 0; j < 4; ++j)
              sum[j] = fma(j < 2 ? upper.x[1] : lower.x[1], s.x[j % 2], sum[j]);
          }
        }
      }
    }
  }

  /// Adds the warps' sums of every row group in hand, in order, and writes the rows.
  KT_DEVICE static void store(const Params& p, int64_t base_pair, int64_t pairs, int pass,
                              const Sums& sums) {
    const int lane = lane_id();
    const Shared<float> all = shared_at<float>(0);
    sync();  // the last row groups' sums were read
    KT_UNROLL
    for (int i = 0; i < kTokenTiles; ++i) {
      KT_UNROLL
      for (int j = 0; j < 4; ++j) {
        const int row = lane / 4 + j / 2 * 8, token = 2 * (lane % 4) + j % 2;
        all[((warp_id() * kTokenTiles + i) * 8 + token) * 16 + row] = sums.d[i].x[j];
      }
    }
    sync();
    const int row_groups = div_up(p.n, 16);
    for (int i = thread_id(); i < kRowGroups * kTokenTiles * 128; i += kThreads) {
      const int64_t pair = base_pair + i / (kTokenTiles * 128);
      if (pair >= pairs) continue;
      const GemvItem item = Global<const GemvItem>(p.items)[pair / row_groups];
      const int in_group = i % (kTokenTiles * 128);
      const int tile = pass * kTokenTiles + in_group / 128;
      const int row = static_cast<int>(pair % row_groups) * 16 + i % 16;
      if (tile >= item.tiles || row >= p.n) continue;
      float total = 0;
      for (int w = 0; w < kDepth; ++w)
        total += all[(i / (kTokenTiles * 128) * kDepth + w) * kTokenTiles * 128 + in_group];
      const int64_t slot = static_cast<int64_t>(item.first_tile + tile) * 8 + i / 16 % 8;
      const float scale = Global<const float>(p.x.scales)[slot];
      Global<float>(p.y)[slot * p.n + row] = total * scale;
    }
  }

  KT_DEVICE static void run(const Params& p) {
    const int row_groups = div_up(p.n, 16);
    const int items = p.num_items ? int{Global<const int32_t>(p.num_items)[0]} : p.max_items;
    const int64_t pairs = static_cast<int64_t>(items) * row_groups;
    const int pass = block_y();  // of kTokenTiles tiles
    Cursor ahead{first_pair(), part()};
    for (int i = 0; i < p.stages - 1; ++i) {
      load(p, ahead, pairs, i);
      advance(p, ahead);
    }
    int slot = 0, free = p.stages - 1;  // what is multiplied next, and what may be copied over
    // Every warp makes every round, with or without a row group: store() has barriers.
    for (int64_t base = static_cast<int64_t>(block_x()) * kRowGroups; base < pairs;
         base += step()) {
      const int64_t pair = base + warp_id() / kDepth;
      Sums sums{};
      // At least one round, also of a warp without a chunk: as advance() counts them.
      for (int chunk = part(); chunk == part() || chunk < chunks(p); chunk += kDepth) {
        load(p, ahead, pairs, free);
        advance(p, ahead);
        wait(p);
        sync_warp();
        if (pair < pairs && chunk < chunks(p)) {
          const GemvItem item = Global<const GemvItem>(p.items)[pair / row_groups];
          const int tiles = min(kTokenTiles, item.tiles - pass * kTokenTiles);
          if (tiles > 0) {
            const Shared<uint32_t> weights = stage(p, slot);
            decode_scales(p, item, static_cast<int>(pair % row_groups), chunk, weights);
            sync_warp();
            multiply(p, item.first_tile + pass * kTokenTiles, tiles, chunk, weights, sums);
          }
        }
        sync_warp();  // before the next copies overwrite this stage, and scales the table
        slot = next(p, slot), free = next(p, free);
      }
      store(p, base, pairs, pass, sums);
    }
  }
};

}  // namespace kt::cuda
