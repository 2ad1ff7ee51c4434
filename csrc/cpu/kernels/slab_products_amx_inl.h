// A slab times all tokens of a pass, by tiles: 16 rows of weights meet 16 tokens and 32 values in one
// instruction. For formats of 32 values per scale.
//
//     digits    tiles 0-3: sums [2 blocks of 16 tokens][2 row groups]
//               4, 5: digits of the blocks      6, 7: weights of the row groups, as a slab has them
//     halves    tiles 0-3: sums [hi, lo][2 row groups] of one block; 4, 5: its hi and lo
//
// A group's weights have scales and a group's activations have theirs, so the sums of every 32 values go
// through memory (L1) to the vectors, which scale them as micro_avx512_inl.h does: the same integers, the
// same floats in the same order, the same bits. That flush is what a group costs most; products of bf16
// would not need it, but would round weights and activations to eight bits, another result on every CPU.
// Sums of bytes and starts that are added later instead of first are the same in 32 bits.
#pragma once

#include "cpu/kernels/amx_tile_inl.h"
#include "cpu/kernels/gemm_pass_inl.h"
#include "cpu/kernels/prefetcher_inl.h"
#include "cpu/kernels/zero_points_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

constexpr int chunk_words(int, int, int) { return 0; }  // sums of 16 bits have no part here

constexpr int kTileTokens = 16;
constexpr TileShape kSums = {16, 64}, kTokens = {16, 32}, kWeights = {8, 64};
constexpr TileConfig kTileConfig({kSums, kSums, kSums, kSums, kTokens, kTokens, kWeights, kWeights});

template <int V, bool kMin, int, bool kExactRow>
struct SlabProducts {
  static_assert(V == 8);
  // Tokens that share a weight tile.
  static constexpr int kMost = kExactRow ? kTileTokens : 2 * kTileTokens;
  PassZeros zeros;  // of digits
  Tiles tiles;
  // Of each token 256 digits, or 256 hi and 256 lo; tokens that are not there are zero.
  alignas(64) uint8_t panel[2 * kTileTokens][kSlabColumns];
  alignas(64) int32_t sums[4][kTileTokens][16];
  alignas(64) float parts[kSlabRowGroups][kMost][16];

  KT_INLINE void prepare(SlabProducts& self, int64_t columns, const GemmPass& pass) {
    Tiles::start(self.tiles, kTileConfig);
    memset(self.panel, 0, sizeof self.panel);
    if constexpr (!kExactRow) find_zero_ranges(columns, pass.count, pass.rows, self.zeros);
  }
  KT_INLINE void finish(SlabProducts& self) { Tiles::stop(self.tiles); }

  static constexpr int steps(int count) { return (count + kMost - 1) / kMost; }

  KT_INLINE void run(SlabProducts& self, const SlabRows<V, kMin>* w, int row_groups, int groups,
                     int64_t column, const GemmPass& pass, Prefetcher& next) {
    const int64_t at = act_offset<kExactRow>(column);
    if constexpr (!kExactRow) prepare_slab<V, kMin>(w, row_groups, groups, column, self.zeros);
    for (int first = 0; first < pass.count; first += kMost) {
      Prefetcher::step(next);
      const int count = pass.count - first < kMost ? pass.count - first : kMost;
      const void* const* rows = pass.rows + first;
      float* sums = pass.sums + first * kSumsStride;
      if constexpr (kExactRow)
        halves(self, w, row_groups, groups, rows, count, at, sums);
      else
        digits(self, w, row_groups, groups, rows, count, at, sums);
    }
  }

 private:
  static void digits(SlabProducts& self, const SlabRows<V, kMin>* w, int row_groups, int groups,
                     const void* const* rows, int count, int64_t at, float* sums) {
    const DigitBlock* x[kMost];
    for (int t = 0; t < count; ++t) {
      x[t] = (const DigitBlock*)((const uint8_t*)rows[t] + at);
      memcpy(self.panel[t], x[t]->digit, kSlabColumns);
      for (int r = 0; r < row_groups; ++r) store_f(self.parts[r][t], zero_f());
    }
    for (int g = 0; g < groups; ++g) {
      Tiles::load<6>(self.tiles, w[0].w[g * V], 64);
      Tiles::load<4>(self.tiles, self.panel[0] + 32 * g, kSlabColumns);
      multiply_digits<0, 4, 6>(self);
      if (row_groups == 2) {
        Tiles::load<7>(self.tiles, w[1].w[g * V], 64);
        multiply_digits<1, 4, 7>(self);
      }
      if (count > kTileTokens) {
        Tiles::load<5>(self.tiles, self.panel[kTileTokens] + 32 * g, kSlabColumns);
        multiply_digits<2, 5, 6>(self);
        if (row_groups == 2) multiply_digits<3, 5, 7>(self);
      }
      for (int r = 0; r < row_groups; ++r) {
        const F scale = load_f(w[r].scale[g]), low = kMin ? load_f(w[r].min[kMin ? g : 0]) : zero_f();
        const int32_t(*zeros)[16] = self.zeros.table.rows[g][r];
        for (int t = 0; t < count; ++t) {
          const I start = load_i((const uint8_t*)zeros + x[t]->zero_at[g]);
          const I dot = add(load_i(self.sums[t / kTileTokens * 2 + r][t % kTileTokens]), start);
          F part = fma(to_float(shl(dot, x[t]->shift[g])), scale, load_f(self.parts[r][t]));
          if constexpr (kMin) part = fma(set_f(x[t]->sum[g]), low, part);
          store_f(self.parts[r][t], part);
        }
      }
    }
    for (int t = 0; t < count; ++t) {
      const int column = x[t]->outlier_at;
      for (int r = 0; r < row_groups; ++r) {
        const I byte = sar(shl(load_i(w[r].w[column / 4]), 24 - 8 * (column % 4)), 24);
        const F weight = mul(to_float(byte), load_f(w[r].scale[column / 32]));
        float* total = sums + t * kSumsStride + 16 * r;
        const F dots = fma(load_f(self.parts[r][t]), set_f(x[t]->unit), load_f(total));
        store_f(total, fma(weight, set_f(x[t]->outlier), dots));
      }
    }
  }

  template <int c, int a, int b>
  KT_INLINE void multiply_digits(SlabProducts& self) {
    Tiles::zero<c>(self.tiles);
    Tiles::multiply_us<c, a, b>(self.tiles);
    Tiles::store<c>(self.tiles, self.sums[c], 64);
  }

  static void halves(SlabProducts& self, const SlabRows<V, kMin>* w, int row_groups, int groups,
                     const void* const* rows, int count, int64_t at, float* sums) {
    const ActBlock* x[kMost];
    for (int t = 0; t < count; ++t) {
      x[t] = (const ActBlock*)((const uint8_t*)rows[t] + at);
      for (int g = 0; g < groups; ++g) {
        memcpy(self.panel[t] + 32 * g, x[t][g].hi, 32);
        memcpy(self.panel[kTileTokens + t] + 32 * g, x[t][g].lo, 32);
      }
    }
    for (int g = 0; g < groups; ++g) {
      Tiles::load<4>(self.tiles, self.panel[0] + 32 * g, kSlabColumns);
      Tiles::load<5>(self.tiles, self.panel[kTileTokens] + 32 * g, kSlabColumns);
      Tiles::load<6>(self.tiles, w[0].w[g * V], 64);
      multiply_half<0, 4, 6>(self);
      multiply_half<2, 5, 6>(self);
      if (row_groups == 2) {
        Tiles::load<7>(self.tiles, w[1].w[g * V], 64);
        multiply_half<1, 4, 7>(self);
        multiply_half<3, 5, 7>(self);
      }
      for (int r = 0; r < row_groups; ++r) {
        const F scale = load_f(w[r].scale[g]), low = kMin ? load_f(w[r].min[kMin ? g : 0]) : zero_f();
        for (int t = 0; t < count; ++t) {
          const I dot = add(shl(load_i(self.sums[r][t]), 8), load_i(self.sums[2 + r][t]));
          float* total = sums + t * kSumsStride + 16 * r;
          F result = fma(mul(to_float(dot), set_f(x[t][g].scale)), scale, load_f(total));
          if constexpr (kMin) {
            const int32_t sum = x[t][g].sum[0] + x[t][g].sum[1];
            result = fma(low, set_f(x[t][g].scale * (float)sum), result);
          }
          store_f(total, result);
        }
      }
    }
  }

  template <int c, int a, int b>
  KT_INLINE void multiply_half(SlabProducts& self) {
    Tiles::zero<c>(self.tiles);
    Tiles::multiply_ss<c, a, b>(self.tiles);
    Tiles::store<c>(self.tiles, self.sums[c], 64);
  }
};

}  // namespace
}  // namespace kt::cpu::KT_ISA
