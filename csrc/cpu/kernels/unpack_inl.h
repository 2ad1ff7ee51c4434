// unpack_tile for the formats people run most. R16 puts the same four packed bytes of sixteen rows
// side by side, so that unpacking is a few shifts and masks on whole vectors, metadata included.
//
// "word w" below is the 64-byte vector of bytes 4 w .. 4 w + 3 of the block, counted without its head
// bytes; quant/<format>.h says which values they hold. Vector v of a tile has values 4 v .. 4 v + 3.
#pragma once

#include "cpu/kernels/tile_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

template <class Q>
KT_INLINE I word(const uint8_t* record, int w) {
  return load_i(quant::r16_word<Q>(record, w));
}

// Two-byte heads: one binary16 scale per row.
KT_INLINE F head_halves(const uint8_t* record) { return load_half((const uint16_t*)record); }

KT_INLINE I low_nibbles(I w) { return band(w, set_i(0x0F0F0F0F)); }
KT_INLINE I high_nibbles(I w) { return band(shr(w, 4), set_i(0x0F0F0F0F)); }

// 32 values as 16 bytes of nibbles, from word `first` on: low halves first, then high halves.
template <class Q, class Each>
KT_INLINE void nibbles32(const uint8_t* record, int first, int vector, Tile<Q>& tile, Each each) {
  for (int j = 0; j < 4; ++j) {
    const I w = word<Q>(record, first + j);
    put_word(tile, vector + j, each(low_nibbles(w), j));
    put_word(tile, vector + j + 4, each(high_nibbles(w), j + 4));
  }
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::Q4_0>& tile) {
  store_f(tile.scale[0], head_halves(record));
  nibbles32(record, 0, 0, tile, [](I q, int) { return q; });
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::Q4_1>& tile) {
  const I head = word<quant::Q4_1>(record, 0);
  store_f(tile.scale[0], half_lanes(head));
  store_f(tile.min[0], half_lanes(shr(head, 16)));
  nibbles32(record, 1, 0, tile, [](I q, int) { return q; });
}

// Bits 4 j .. 4 j + 3 of a word, one in bit 4 of each byte.
KT_INLINE I fifth_bits(I bits, int j) {
  const I b = band(shr(bits, 4 * j), set_i(15));
  const I spread = bor(bor(b, shl(b, 7)), bor(shl(b, 14), shl(b, 21)));
  return shl(band(spread, set_i(0x01010101)), 4);
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::Q5_0>& tile) {
  store_f(tile.scale[0], head_halves(record));
  const I bits = word<quant::Q5_0>(record, 0);
  nibbles32(record, 1, 0, tile, [&](I q, int v) { return bor(q, fifth_bits(bits, v)); });
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::Q5_1>& tile) {
  const I head = word<quant::Q5_1>(record, 0);
  store_f(tile.scale[0], half_lanes(head));
  store_f(tile.min[0], half_lanes(shr(head, 16)));
  const I bits = word<quant::Q5_1>(record, 1);
  nibbles32(record, 2, 0, tile, [&](I q, int v) { return bor(q, fifth_bits(bits, v)); });
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::Q8_0>& tile) {
  store_f(tile.scale[0], head_halves(record));
  for (int j = 0; j < 8; ++j) store_i(tile.w[j], word<quant::Q8_0>(record, j));
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::IQ4_NL>& tile) {
  store_f(tile.scale[0], head_halves(record));
  nibbles32(record, 0, 0, tile, [](I q, int) { return lookup16(q, quant::kIq4Levels); });
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::IQ4_XS>& tile) {
  using Q = quant::IQ4_XS;
  const I head = word<Q>(record, 0), lows = word<Q>(record, 1);
  const F d = half_lanes(head);
  for (int g = 0; g < 8; ++g) {
    const I low = band(shr(lows, 4 * g), set_i(15));
    const I high = band(shr(head, 16 + 2 * g), set_i(3));
    store_f(tile.scale[g], mul(d, to_float(add(bor(low, shl(high, 4)), set_i(-32)))));
    nibbles32(record, 2 + 4 * g, 8 * g, tile,
              [](I q, int) { return lookup16(q, quant::kIq4Levels); });
  }
}

// Scales and minima of Q4_K and Q5_K (quant/k_scales.h): words 0 to 3.
template <class Q>
KT_INLINE void unpack_k_head(const uint8_t* record, Tile<Q>& tile) {
  const I head = word<Q>(record, 0);
  const F d = half_lanes(head), dmin = half_lanes(shr(head, 16));
  const I s = word<Q>(record, 1), t = word<Q>(record, 2), both = word<Q>(record, 3);
  const I six = set_i(63), four = set_i(15), top = set_i(0x30);
  for (int g = 0; g < 4; ++g) {
    const I byte = shr(both, 8 * g);
    const I s_high = bor(band(byte, four), band(shr(shr(s, 8 * g), 2), top));
    const I t_high = bor(band(shr(byte, 4), four), band(shr(shr(t, 8 * g), 2), top));
    store_f(tile.scale[g], mul(d, to_float(band(shr(s, 8 * g), six))));
    store_f(tile.scale[g + 4], mul(d, to_float(s_high)));
    store_f(tile.min[g], neg(mul(dmin, to_float(band(shr(t, 8 * g), six)))));
    store_f(tile.min[g + 4], neg(mul(dmin, to_float(t_high))));
  }
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::Q4_K>& tile) {
  unpack_k_head(record, tile);
  for (int c = 0; c < 4; ++c) {
    for (int j = 0; j < 8; ++j) {
      const I w = word<quant::Q4_K>(record, 4 + 8 * c + j);
      put_word(tile, 16 * c + j, low_nibbles(w));
      put_word(tile, 16 * c + 8 + j, high_nibbles(w));
    }
  }
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::Q5_K>& tile) {
  using Q = quant::Q5_K;
  unpack_k_head(record, tile);
  const I one = set_i(0x01010101);
  for (int j = 0; j < 8; ++j) {
    const I bits = word<Q>(record, 4 + j);
    for (int c = 0; c < 4; ++c) {
      const I w = word<Q>(record, 12 + 8 * c + j);
      const I low = shl(band(shr(bits, 2 * c), one), 4);
      const I high = shl(band(shr(bits, 2 * c + 1), one), 4);
      put_word(tile, 16 * c + j, bor(low_nibbles(w), low));
      put_word(tile, 16 * c + 8 + j, bor(high_nibbles(w), high));
    }
  }
}

// Byte `b` of every word, as a signed number.
KT_INLINE I signed_byte(I w, int b) { return sar(shl(w, 24 - 8 * b), 24); }
KT_INLINE I unsigned_byte(I w, int b) { return band(shr(w, 8 * b), set_i(255)); }

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::Q6_K>& tile) {
  using Q = quant::Q6_K;
  const F d = head_halves(record);
  for (int g = 0; g < 16; ++g)
    store_f(tile.scale[g], mul(d, to_float(signed_byte(word<Q>(record, 48 + g / 4), g % 4))));
  const I two = set_i(0x03030303);
  for (int h = 0; h < 2; ++h) {
    for (int j = 0; j < 8; ++j) {
      const I even = word<Q>(record, 16 * h + j), odd = word<Q>(record, 16 * h + 8 + j);
      const I bits = word<Q>(record, 32 + 8 * h + j);
      const I low[4] = {low_nibbles(even), low_nibbles(odd), high_nibbles(even), high_nibbles(odd)};
      for (int p = 0; p < 4; ++p)
        put_word(tile, 32 * h + 8 * p + j, bor(low[p], shl(band(shr(bits, 2 * p), two), 4)));
    }
  }
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::Q3_K>& tile) {
  using Q = quant::Q3_K;
  const F d = head_halves(record);
  for (int g = 0; g < 16; ++g) {
    const I low = band(shr(word<Q>(record, 24 + g % 8 / 4), 8 * (g % 4) + 4 * (g / 8)), set_i(15));
    const I high = band(shr(word<Q>(record, 26), 8 * (g % 4) + 2 * (g / 4)), set_i(3));
    store_f(tile.scale[g], mul(d, to_float(add(bor(low, shl(high, 4)), set_i(-32)))));
  }
  for (int j = 0; j < 8; ++j) {
    const I thirds = word<Q>(record, j);
    for (int i = 0; i < 8; ++i) {
      const I low = band(shr(word<Q>(record, 8 + 8 * (i / 4) + j), 2 * (i % 4)), set_i(0x03030303));
      const I high = shl(band(shr(thirds, i), set_i(0x01010101)), 2);
      put_word(tile, 8 * i + j, bor(low, high));
    }
  }
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::Q2_K>& tile) {
  using Q = quant::Q2_K;
  const I head = word<Q>(record, 20);
  const F d = half_lanes(head), dmin = half_lanes(shr(head, 16));
  for (int g = 0; g < 16; ++g) {
    const I byte = unsigned_byte(word<Q>(record, g / 4), g % 4);
    store_f(tile.scale[g], mul(d, to_float(band(byte, set_i(15)))));
    store_f(tile.min[g], neg(mul(dmin, to_float(shr(byte, 4)))));
  }
  for (int h = 0; h < 2; ++h) {
    for (int j = 0; j < 8; ++j) {
      const I w = word<Q>(record, 4 + 8 * h + j);
      for (int p = 0; p < 4; ++p)
        put_word(tile, 32 * h + 8 * p + j, band(shr(w, 2 * p), set_i(0x03030303)));
    }
  }
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
