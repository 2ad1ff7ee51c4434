// One R16 record unpacked: bytes four by four in dot-product order, with a scale and minimum per
// row and group. The generic version goes through the format's scalar integer view; a format gets
// its own where it matters (the words of sixteen rows lie side by side, so most are a few shifts).
#pragma once

#include "cpu/kernels/simd_inl.h"
#include "quant/list.h"
#include "quant/r16.h"

namespace kt::cpu::KT_ISA {
namespace {

template <class Q>
struct Tile {
  static constexpr int kGroups = Q::kValues / Q::kGroup;
  static constexpr int kVectors = Q::kGroup / 4;  // word vectors per group
  alignas(64) uint8_t u[Q::kValues / 4][64];      // [k / 4][row * 4 + k % 4]
  alignas(64) float scale[kGroups][16];           // [group][row]
  alignas(64) float min[Q::kHasMin ? kGroups : 1][16];
};

template <class Q>
KT_INLINE void unpack_tile(const uint8_t* record, Tile<Q>& tile) {
  typename Q::Block block;
  uint8_t u[Q::kValues];
  float scale[Tile<Q>::kGroups], min[Tile<Q>::kGroups];
  for (int row = 0; row < 16; ++row) {
    quant::r16_get<Q>(record, row, &block);
    unpack_ints(block, u, scale, min);
    for (int w = 0; w < Q::kValues / 4; ++w) memcpy(&tile.u[w][row * 4], u + w * 4, 4);
    for (int g = 0; g < Tile<Q>::kGroups; ++g) {
      tile.scale[g][row] = scale[g];
      if constexpr (Q::kHasMin) tile.min[g][row] = min[g];
    }
  }
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::Q4_1>& tile) {
  const I nibble = set_i(0x0F0F0F0F);
  const I head = load_i(record);  // d in the low half, m in the high half
  store_f(tile.scale[0], half_lanes(head));
  store_f(tile.min[0], half_lanes(shr<16>(head)));
  for (int j = 0; j < 4; ++j) {
    const I word = load_i(record + 64 + 64 * j);
    store_i(tile.u[j], band(word, nibble));
    store_i(tile.u[j + 4], band(shr<4>(word), nibble));
  }
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::Q8_0>& tile) {
  store_f(tile.scale[0], load_half((const uint16_t*)record));
  // Adding 128 to a signed byte flips its top bit.
  const I flip = set_i((int32_t)0x80808080u);
  for (int j = 0; j < 8; ++j) {
    const I word = load_i(record + 32 + 64 * j);
    store_i(tile.u[j], bxor(word, flip));
  }
}

// The tile's weights as floats, [k][row].
template <class Q>
KT_INLINE void tile_to_float(const Tile<Q>& tile, float (*out)[16]) {
  const I byte = set_i(255), offset = set_i(-Q::kOffset);
  for (int g = 0; g < Tile<Q>::kGroups; ++g) {
    const F scale = load_f(tile.scale[g]);
    const F low = Q::kHasMin ? load_f(tile.min[Q::kHasMin ? g : 0]) : zero_f();
    for (int j = 0; j < Tile<Q>::kVectors; ++j) {
      const int w = g * Tile<Q>::kVectors + j;
      const I word = load_i(tile.u[w]);
      const I q[4] = {band(word, byte), band(shr<8>(word), byte), band(shr<16>(word), byte),
                      shr<24>(word)};
      for (int i = 0; i < 4; ++i) {
        const F value = mul(scale, to_float(add(q[i], offset)));
        store_f(out[w * 4 + i], Q::kHasMin ? add(value, low) : value);
      }
    }
  }
}

// Values handled at a time in the float kernels.
template <class Q>
inline constexpr int kFloatChunk = Q::kValues > 32 ? Q::kValues : 32;

// `count` (<= kFloatChunk) columns from record `first_record` on as floats, [k][row].
template <class Q>
KT_INLINE void unpack_floats(const uint8_t* records, int count, float (*out)[16]) {
  if constexpr (Q::kGroup == 0) {
    for (int i = 0; i < count; ++i) {
      const uint8_t* record = records + i * quant::R16<Q>::kRecordBytes;
      if constexpr (Q::kGgufId == quant::F32::kGgufId)
        store_f(out[i], load_f((const float*)record));
      else if constexpr (Q::kGgufId == quant::F16::kGgufId)
        store_f(out[i], load_half((const uint16_t*)record));
      else
        store_f(out[i], load_bf16((const uint16_t*)record));
    }
  } else {
    Tile<Q> tile;
    unpack_tile(records, tile);
    tile_to_float(tile, out);
    (void)count;
  }
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
