// Weights as floats, [k][row], for the reference arithmetic and for products that stay in float.
#pragma once

#include "cpu/kernels/unpack_codebook_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

// The tile's weights as floats, [k][row].
template <class Q>
KT_INLINE void tile_to_float(const Tile<Q>& tile, float (*out)[16]) {
  for (int g = 0; g < Tile<Q>::kGroups; ++g) {
    const F scale = load_f(tile.scale[g]);
    const F low = Q::kHasMin ? load_f(tile.min[Q::kHasMin ? g : 0]) : zero_f();
    for (int j = 0; j < Tile<Q>::kVectors; ++j) {
      const int w = g * Tile<Q>::kVectors + j;
      const I word = load_i(tile.w[w]);
      for (int i = 0; i < 4; ++i) {
        const F value = mul(scale, to_float(signed_byte(word, i)));
        store_f(out[w * 4 + i], Q::kHasMin ? add(value, low) : value);
      }
    }
  }
}

// Where block `block` of row group `group` stands; to the end of its panel the group's next follow.
template <class Q, class Task>
KT_INLINE const uint8_t* record_at(const Task& task, int64_t group, int64_t block) {
  const int64_t groups = (task.rows + 15) / 16, blocks = task.k / Q::kValues;
  return task.records +
         quant::r16_record<Q>(groups, blocks, group, block) * (int64_t)quant::R16<Q>::kRecordBytes;
}

// Values handled at a time in the float kernels.
template <class Q>
inline constexpr int kFloatChunk = Q::kGroup == 0 ? 128 : Q::kValues > 32 ? Q::kValues : 32;

// One column of sixteen rows that are stored as floats.
template <class Q>
KT_INLINE F load_stored(const uint8_t* record) {
  if constexpr (Q::kGgufId == quant::F32::kGgufId) return load_f((const float*)record);
  if constexpr (Q::kGgufId == quant::F16::kGgufId) return load_half((const uint16_t*)record);
  if constexpr (Q::kGgufId == quant::BF16::kGgufId) return load_bf16((const uint16_t*)record);
}

// `count` (<= kFloatChunk) columns from record `first_record` on as floats, [k][row].
template <class Q>
KT_INLINE void unpack_floats(const uint8_t* records, int count, float (*out)[16]) {
  if constexpr (Q::kGroup == 0) {
    for (int i = 0; i < count; ++i)
      store_f(out[i], load_stored<Q>(records + i * quant::R16<Q>::kRecordBytes));
  } else {
    Tile<Q> tile;
    unpack_tile(records, tile);
    tile_to_float(tile, out);
    (void)count;
  }
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
