// One R16 record unpacked: signed bytes u - kOffset four by four in dot-product order, with a scale
// and minimum per row and group. The generic version goes through the format's scalar integer view;
// a format gets its own, in unpack_inl.h and unpack_codebook_inl.h, where it matters.
#pragma once

#include "cpu/kernels/simd_inl.h"
#include "quant/list.h"
#include "quant/r16.h"

namespace kt::cpu::KT_ISA {
namespace {

/// The storage, the same for every format of one shape.
template <int kTileValues, int kGroupValues, bool kHasMinima>
struct TileRows {
  static constexpr int kGroups = kTileValues / kGroupValues;
  static constexpr int kVectors = kGroupValues / 4;  // word vectors per group
  alignas(64) int8_t w[kTileValues / 4][64];         // [k / 4][row * 4 + k % 4]
  alignas(64) float scale[kGroups][16];              // [group][row]
  alignas(64) float min[kHasMinima ? kGroups : 1][16];
};

template <class Q>
struct Tile : TileRows<Q::kValues, Q::kGroup, Q::kHasMin> {};

/// Puts a word vector of unsigned values u into a tile.
template <class Q>
KT_INLINE void put_word(Tile<Q>& tile, int v, I u) {
  static_assert(Q::kHasMin == (Q::kOffset == 0));
  if constexpr (Q::kOffset != 0)
    u = sub_bytes(u, set_i((int32_t)(0x01010101u * (uint32_t)Q::kOffset)));
  store_i(tile.w[v], u);
}

template <class Q>
KT_INLINE void unpack_tile(const uint8_t* record, Tile<Q>& tile) {
  typename Q::Block block;
  uint8_t u[Q::kValues];
  float scale[Tile<Q>::kGroups], min[Tile<Q>::kGroups];
  for (int row = 0; row < 16; ++row) {
    quant::r16_get<Q>(record, row, &block);
    unpack_ints(block, u, scale, min);
    for (int i = 0; i < Q::kValues; ++i)
      tile.w[i / 4][row * 4 + i % 4] = (int8_t)(u[i] - Q::kOffset);
    for (int g = 0; g < Tile<Q>::kGroups; ++g) {
      tile.scale[g][row] = scale[g];
      if constexpr (Q::kHasMin) tile.min[g][row] = min[g];
    }
  }
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
