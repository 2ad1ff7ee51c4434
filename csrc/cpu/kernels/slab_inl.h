// A slab: up to 256 columns of one or two row groups, unpacked to bytes in L1. 8 KiB for 32 rows;
// every token's 256 activations meet it before the next slab is unpacked.
#pragma once

#include "cpu/kernels/digits_inl.h"
#include "cpu/kernels/unpack_codebook_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

constexpr int kSlabColumns = kDigitValues;
constexpr int kSlabRowGroups = 2;
constexpr int kSumsStride = 16 * kSlabRowGroups;  // floats between tokens' running totals

/// One row group of a slab: V word vectors per group of 4 V values.
template <int V, bool kMin>
using SlabRows = TileRows<kSlabColumns, 4 * V, kMin>;

/// Unpacks `columns` columns of a row group, its records from `records` on.
template <class Q>
KT_INLINE void unpack_slab(const uint8_t* records, int columns,
                           SlabRows<Q::kGroup / 4, Q::kHasMin>& out) {
  if constexpr (Q::kValues == kSlabColumns) {
    static_assert(sizeof(Tile<Q>) == sizeof out);  // a name for the same storage, nothing more
    unpack_tile(records, static_cast<Tile<Q>&>(out));
    (void)columns;
  } else {
    for (int i = 0; i < columns / Q::kValues; ++i) {
      Tile<Q> tile;
      unpack_tile(records + i * quant::R16<Q>::kRecordBytes, tile);
      memcpy(out.w[i * Q::kValues / 4], tile.w, sizeof tile.w);
      memcpy(out.scale[i * Tile<Q>::kGroups], tile.scale, sizeof tile.scale);
      if constexpr (Q::kHasMin)
        memcpy(out.min[i * Tile<Q>::kGroups], tile.min, sizeof tile.min);
    }
  }
}

template <class Q>
static void unpack_to_slab(const uint8_t* records, int columns, void* slab) {
  unpack_slab<Q>(records, columns, *(SlabRows<Q::kGroup / 4, Q::kHasMin>*)slab);
}

template <class Q>
constexpr auto unpack_of() -> void (*)(const uint8_t*, int, void*) {
  if constexpr (Q::kGroup == 0)
    return nullptr;
  else
    return &unpack_to_slab<Q>;
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
