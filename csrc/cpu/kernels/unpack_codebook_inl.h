// unpack_tile for the formats whose values are points of a codebook, ternary digits or 4-bit
// floats. As in unpack_inl.h a lane is a row; sixteen rows look their points up with one gather.
#pragma once

#include "cpu/kernels/iq_scales_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

// Four fields of a lane as four bytes: of one bit, of two (from the low byte), of three.
KT_INLINE I spread1(I x) {
  return band(bor(bor(x, shl(x, 7)), bor(shl(x, 14), shl(x, 21))), set_i(0x01010101));
}
KT_INLINE I spread2(I x) {
  x = band(x, set_i(255));
  return band(bor(bor(x, shl(x, 6)), bor(shl(x, 12), shl(x, 18))), set_i(0x03030303));
}
KT_INLINE I spread3(I x) {
  const I two = bor(band(x, set_i(63)), band(shl(x, 10), set_i(63 << 16)));
  return band(bor(two, shl(two, 5)), set_i(0x07070707));
}

// quant::even_signs of each lane, which has seven bits.
KT_INLINE I eight_signs(I seven) {
  I parity = bxor(seven, shr(seven, 4));
  parity = bxor(parity, shr(parity, 2));
  parity = bxor(parity, shr(parity, 1));
  return bor(seven, shl(band(parity, set_i(1)), 7));
}

// u of a code below kCodes (4 or 8), and at kCodes + code that of its negative.
template <int kCodes>
struct SignedLevels {
  uint8_t u[16];
};
template <int kCodes>
constexpr SignedLevels<kCodes> signed_levels(const uint8_t (&level)[kCodes], int offset) {
  SignedLevels<kCodes> table{};
  for (int i = 0; i < kCodes; ++i) {
    table.u[i] = (uint8_t)(offset + level[i]);
    table.u[kCodes + i] = (uint8_t)(offset - level[i]);
  }
  return table;
}

constexpr auto kIq2Table = signed_levels(quant::kIq2Levels, quant::IQ2_XXS::kOffset);
constexpr auto kIq3xxsTable = signed_levels(quant::kIq3xxsLevels, quant::IQ3_XXS::kOffset);
constexpr auto kIq3sTable = signed_levels(quant::kIq3sLevels, quant::IQ3_S::kOffset);

// Eight values from a point's 2-bit codes and eight signs: two vectors.
template <class Q>
KT_INLINE void store_point8(I codes, I signs, const uint8_t* table, Tile<Q>& tile, int v) {
  for (int h = 0; h < 2; ++h) {
    const I index = bor(spread2(shr(codes, 8 * h)), shl(spread1(bits_of(signs, 4 * h, 15)), 2));
    put_word(tile, v + h, lookup16(index, table));
  }
}

// Four values from a point's 3-bit codes and four signs.
template <class Q>
KT_INLINE void store_point4(I codes, I signs, const uint8_t* table, Tile<Q>& tile, int v) {
  put_word(tile, v, lookup16(bor(spread3(codes), shl(spread1(signs), 3)), table));
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::IQ2_XXS>& tile) {
  using Q = quant::IQ2_XXS;
  const F d = head_halves(record);
  for (int g = 0; g < 8; ++g) {
    const I points = word<Q>(record, 2 * g), rest = word<Q>(record, 2 * g + 1);
    for (int p = 0; p < 4; ++p) {
      const I codes = gather16(quant::kIq2xxsGrid, unsigned_byte(points, p));
      const I signs = eight_signs(bits_of(rest, 7 * p, 127));
      store_point8(codes, signs, kIq2Table.u, tile, 8 * g + 2 * p);
    }
    store_f(tile.scale[g], half_step_scale(d, shr(rest, 28), kIq2Factor));
  }
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::IQ2_XS>& tile) {
  using Q = quant::IQ2_XS;
  const F d = head_halves(record);
  for (int p = 0; p < 32; ++p) {
    const I q = bits_of(word<Q>(record, p / 2), p % 2 * 16, 0xFFFF);
    const I codes = gather16(quant::kIq2xsGrid, band(q, set_i(511)));
    store_point8(codes, eight_signs(shr(q, 9)), kIq2Table.u, tile, 2 * p);
  }
  for (int g = 0; g < 16; ++g) {
    const I s = bits_of(word<Q>(record, 16 + g / 8), g % 8 * 4, 15);
    store_f(tile.scale[g], half_step_scale(d, s, kIq2Factor));
  }
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::IQ2_S>& tile) {
  using Q = quant::IQ2_S;
  const F d = head_halves(record);
  for (int p = 0; p < 32; ++p) {
    const I high = bits_of(word<Q>(record, 16 + p / 16), p % 16 * 2, 3);
    const I index = bor(unsigned_byte(word<Q>(record, p / 4), p % 4), shl(high, 8));
    const I signs = unsigned_byte(word<Q>(record, 8 + p / 4), p % 4);
    store_point8(gather16(quant::kIq2sGrid, index), signs, kIq2Table.u, tile, 2 * p);
  }
  for (int g = 0; g < 16; ++g) {
    const I s = bits_of(word<Q>(record, 18 + g / 8), g % 8 * 4, 15);
    store_f(tile.scale[g], half_step_scale(d, s, kIq2Factor));
  }
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::IQ3_XXS>& tile) {
  using Q = quant::IQ3_XXS;
  const F d = head_halves(record);
  for (int g = 0; g < 8; ++g) {
    const I rest = word<Q>(record, 16 + g);
    for (int p = 0; p < 8; p += 2) {
      const I signs = eight_signs(bits_of(rest, p / 2 * 7, 127));
      for (int h = 0; h < 2; ++h) {
        const int point = 8 * g + p + h;
        const I index = unsigned_byte(word<Q>(record, point / 4), point % 4);
        store_point4(gather16(quant::kIq3xxsGrid, index), bits_of(signs, 4 * h, 15), kIq3xxsTable.u,
                     tile, point);
      }
    }
    store_f(tile.scale[g], half_step_scale(d, shr(rest, 28), kIq3xxsFactor));
  }
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::IQ3_S>& tile) {
  using Q = quant::IQ3_S;
  const F d = head_halves(record);
  for (int p = 0; p < 64; ++p) {
    const I high = bits_of(word<Q>(record, 16 + p / 32), p % 32, 1);
    const I index = bor(unsigned_byte(word<Q>(record, p / 4), p % 4), shl(high, 8));
    const I signs = bits_of(word<Q>(record, 18 + p / 8), p % 8 * 4, 15);
    store_point4(gather16(quant::kIq3sGrid, index), signs, kIq3sTable.u, tile, p);
  }
  for (int g = 0; g < 8; ++g) {
    const I s = bits_of(word<Q>(record, 26), g * 4, 15);
    store_f(tile.scale[g], odd_scale(d, s));
  }
}

// Digits -1, 0, 1 in eighths with 1/8 added, and at 4 with 1/8 taken off.
constexpr uint8_t kIq1Table[16] = {2, 10, 18, 0, 0, 8, 16, 0};
static_assert(quant::IQ1_S::kOffset == 9 && quant::IQ1_M::kOffset == 9);

// Eight values of a point; `minus` is 0 or 1.
template <class Q>
KT_INLINE void store_ternary8(I index, I minus, Tile<Q>& tile, int v) {
  const I codes = gather16(quant::kIq1Grid, index);
  const I all = mul(minus, set_i(0x04040404));
  for (int h = 0; h < 2; ++h)
    put_word(tile, v + h, lookup16(bor(spread2(shr(codes, 8 * h)), all), kIq1Table));
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::IQ1_S>& tile) {
  using Q = quant::IQ1_S;
  const F d = head_halves(record);
  for (int g = 0; g < 8; ++g) {
    const I qh = bits_of(word<Q>(record, 8 + g / 2), g % 2 * 16, 0xFFFF);
    for (int p = 0; p < 4; ++p) {
      const I low = unsigned_byte(word<Q>(record, g), p);
      store_ternary8(bor(low, shl(bits_of(qh, 3 * p, 7), 8)), shr(qh, 15), tile, 8 * g + 2 * p);
    }
    store_f(tile.scale[g], iq1_scale(d, bits_of(qh, 12, 7)));
  }
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::IQ1_M>& tile) {
  using Q = quant::IQ1_M;
  for (int p = 0; p < 32; ++p) {
    const I high = bits_of(word<Q>(record, 8 + p / 8), p % 8 * 4, 15);
    const I low = unsigned_byte(word<Q>(record, p / 4), p % 4);
    store_ternary8(bor(low, shl(band(high, set_i(7)), 8)), shr(high, 3), tile, 2 * p);
  }
  const I s[2] = {word<Q>(record, 12), word<Q>(record, 13)};
  const F d = iq1_m_head(record);
  for (int g = 0; g < 16; ++g)
    store_f(tile.scale[g], iq1_scale(d, bits_of(s[g / 8], g / 4 % 2 * 16 + g % 4 * 3, 7)));
}

// Five (or fewer) ternary digits of each byte: digit n goes to vector v + n * stride.
KT_INLINE void store_fractions(I bytes, int digits, int stride, Tile<quant::TQ1_0>& tile, int v) {
  const I low = set_i(0x00FF00FF);
  I even = band(bytes, low), odd = band(shr(bytes, 8), low);
  for (int n = 0; n < digits; ++n) {
    even = add(even, add(even, even));
    odd = add(odd, add(odd, odd));
    const I first = band(shr(even, 8), set_i(0x00030003));
    put_word(tile, v + n * stride, bor(first, band(odd, set_i(0x03000300))));
    even = band(even, low);
    odd = band(odd, low);
  }
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::TQ1_0>& tile) {
  using Q = quant::TQ1_0;
  const F d = head_halves(record);
  for (int g = 0; g < 8; ++g) store_f(tile.scale[g], d);
  for (int w = 0; w < 8; ++w) store_fractions(word<Q>(record, w), 5, 8, tile, w);
  for (int w = 0; w < 4; ++w) store_fractions(word<Q>(record, 8 + w), 5, 4, tile, 40 + w);
  store_fractions(word<Q>(record, 12), 4, 1, tile, 60);
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::TQ2_0>& tile) {
  using Q = quant::TQ2_0;
  const F d = head_halves(record);
  for (int g = 0; g < 8; ++g) store_f(tile.scale[g], d);
  for (int w = 0; w < 16; ++w) {
    const I bits = word<Q>(record, w);
    for (int p = 0; p < 4; ++p)
      put_word(tile, w / 8 * 32 + 8 * p + w % 8, bits_of(bits, 2 * p, 0x03030303));
  }
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::MXFP4>& tile) {
  // 2^(e - 128): a float with exponent field e - 1, subnormal for the two least.
  const F e = load_u8(record);
  const F least = mul(add(e, set_f(1.0f)), set_f(0x1p-128f));
  const F others = as_float(shl(add(to_int(e), set_i(-1)), 23));
  store_f(tile.scale[0], select_le(e, set_f(1.0f), least, others));
  nibbles32(record, 0, 0, tile, [](I q, int) { return lookup16(q, quant::kFp4Levels); });
}

KT_INLINE void unpack_tile(const uint8_t* record, Tile<quant::NVFP4>& tile) {
  using Q = quant::NVFP4;
  for (int g = 0; g < 4; ++g) {
    // A float with the byte's exponent and mantissa, subnormal where the byte is, times 2^119.
    const I e = unsigned_byte(word<Q>(record, 0), g);
    const F scale = mul(as_float(shl(band(e, set_i(127)), 20)), set_f(0x1p119f));
    const F not_nan = to_float(bxor(e, set_i(127)));
    store_f(tile.scale[g], select_le(not_nan, zero_f(), zero_f(), scale));
    for (int j = 0; j < 2; ++j) {
      const I w = word<Q>(record, 1 + 2 * g + j);
      put_word(tile, 4 * g + j, lookup16(low_nibbles(w), quant::kFp4Levels));
      put_word(tile, 4 * g + 2 + j, lookup16(high_nibbles(w), quant::kFp4Levels));
    }
  }
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
