// Points of a codebook looked up in registers, for the formats IQ1, IQ2 and IQ3.
//
// AVX-512 searches a table of up to 512 points by permutations, of 64 points at a time for 32 indices;
// the upper bits of an index choose between them. Larger tables, and AVX2, take a load for each point:
// gathers do the same, and more slowly.
//
// Two indices stand in a lane (a row's), and so do their points. Point of 8 values: two bits each,
// value i at bit 2 i. A vector for the dot product takes one field of every byte of a lane,
//     byte 0: value i   byte 1: value 4 + i   byte 2: value 8 + i   byte 3: value 12 + i
// of 16, and so has the activations reordered (order_activations) instead of the weights.
#pragma once

#include "cpu/kernels/halves_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

#if defined(KT_HAS_GEMV)

// Byte numbers within a lane -> within the 128 bits that vpshufb looks at; -1 for zero.
struct LaneBytes {
  alignas(16) uint8_t control[16];
  constexpr LaneBytes(int b0, int b1, int b2, int b3) : control() {
    const int bytes[4] = {b0, b1, b2, b3};
    for (int i = 0; i < 16; ++i)
      control[i] = (uint8_t)(bytes[i % 4] < 0 ? 0x80 : bytes[i % 4] + i / 4 * 4);
  }
};

// Of every lane the bytes b0 to b3; zero for -1.
template <int b0, int b1, int b2, int b3>
KT_INLINE I pick(I w) {
  static constexpr LaneBytes kBytes(b0, b1, b2, b3);
  return shuffle(w, load_lanes(kBytes.control));
}

// Bytes 0 and 1, or 2 and 3, of every lane as 16-bit indices.
KT_INLINE I first_indices(I w) { return pick<0, -1, 1, -1>(w); }
KT_INLINE I second_indices(I w) { return pick<2, -1, 3, -1>(w); }

// Two indices in a lane with their bits from bit 8 on, as many as `mask` has: those of the first
// are in `bits` and get there by a shift to the left by `first`, those of the second by `second`.
KT_INLINE I with_upper_bits(I indices, I bits, int mask, int first, int second) {
  return bor(bor(indices, band(shl(bits, first), set_i(mask << 8))),
             band(shl(bits, second), set_i(mask << 24)));
}

// Of a | b << 8, the bytes that stay: a's even ones, and a's odd ones moved down beside b's.
KT_INLINE I even_bytes(I a, I b) { return select(set_i(0x00FF00FF), a, shl(b, 8)); }
KT_INLINE I odd_bytes(I a, I b) { return select(set_i(0x00FF00FF), shr(a, 8), b); }

template <int n>
struct Codebook {
  alignas(64) uint16_t points[n];
  constexpr explicit Codebook(const uint16_t* from) : points() {
    for (int i = 0; i < n; ++i) points[i] = from[i];
  }
};

// Indices in the halves of every lane -> their points, one load each.
template <int n>
KT_INLINE I look_up_by_loads(const Codebook<n>& book, I index) {
  alignas(64) uint16_t at[32], points[32];
  store_i(at, index);
#pragma GCC unroll 32
  for (int i = 0; i < 32; ++i) points[i] = book.points[at[i]];
  return load_i(points);
}

#if defined(KT_ISA_AVX512)

template <int n>
KT_INLINE __m512i find(const uint16_t* table, __m512i index, const __mmask32* upper) {
  if constexpr (n == 64) {
    return _mm512_permutex2var_epi16(_mm512_load_si512(table), index,
                                     _mm512_load_si512(table + 32));
  } else {
    const __m512i first = find<n / 2>(table, index, upper);
    const __m512i second = find<n / 2>(table + n / 2, index, upper);
    return _mm512_mask_mov_epi16(first, upper[n / 128], second);
  }
}

template <int n>
KT_INLINE I look_up(const Codebook<n>& book, I index) {
  if constexpr (n > 512) return look_up_by_loads(book, index);
  __mmask32 upper[17];
#pragma GCC unroll 5
  for (int bit = 64; bit < n; bit *= 2)
    upper[bit / 64] = _mm512_test_epi16_mask(index.v, _mm512_set1_epi16((int16_t)bit));
  return {find<n>(book.points, index.v, upper)};
}

#else

template <int n>
KT_INLINE I look_up(const Codebook<n>& book, I index) {
  return look_up_by_loads(book, index);
}

#endif

// Four values in each of a point's three-bit fields -> in nibbles.
template <int n>
struct Nibbles {
  uint16_t points[n];
  constexpr explicit Nibbles(const uint16_t* from) : points() {
    for (int p = 0; p < n; ++p)
      for (int i = 0; i < 4; ++i)
        points[p] = (uint16_t)(points[p] | ((from[p] >> 3 * i) & 7) << 4 * i);
  }
};

constexpr Codebook<2048> kIq1Book(quant::kIq1Grid);
constexpr Codebook<256> kIq2xxsBook(quant::kIq2xxsGrid);
constexpr Codebook<512> kIq2xsBook(quant::kIq2xsGrid);
constexpr Codebook<1024> kIq2sBook(quant::kIq2sGrid);
constexpr Codebook<256> kIq3xxsBook(Nibbles<256>(quant::kIq3xxsGrid).points);
constexpr Codebook<512> kIq3sBook(Nibbles<512>(quant::kIq3sGrid).points);

// Seven stored signs in every byte -> eight (quant/iq_signs.h).
KT_INLINE I even_signs(I seven) {
  alignas(16) static constexpr uint8_t kOdd[16] = {0,    0x80, 0x80, 0,    0x80, 0, 0,    0x80,
                                                   0x80, 0,    0,    0x80, 0,    0x80, 0x80, 0};
  const I nibble = band(bxor(seven, shr(seven, 4)), bytes_of(0x0F));
  return bor(seven, lookup16(nibble, kOdd));
}

// Four patterns of seven bits from bit 0 of every lane -> one a byte.
KT_INLINE I seven_bit_fields(I w) {
  const I even = select(set_i(0x7F), w, shl(w, 1)), odd = select(set_i(0x7F0000), shl(w, 2), shl(w, 3));
  return band(select(set_i(0x00007FFF), even, odd), bytes_of(0x7F));
}

// offset + level of every byte's index (below 16), or offset - level where its sign is set: bit
// `field` of the bytes of `signs` for bytes 0 and 2 of a lane, bit 4 + field for 1 and 3.
KT_INLINE I signed_levels(I index, const uint8_t* levels, int offset, I signs, int field) {
  return take_from_where(lookup16(index, levels), signs, set_i((int32_t)(0x10011001u << field)),
                         bytes_of(2 * offset));
}

// Activations of a panel in the order in which the fields of points meet them.
template <class Q>
KT_INLINE void order_activations(Q, const ActBlock* from, int64_t blocks, ActBlock* to) {
  for (int64_t b = 0; b < blocks; ++b) {
    to[b] = from[b];
#if defined(KT_ISA_AVX512)
    alignas(16) static constexpr uint8_t kOrder[16] = {0, 4, 8,  12, 1, 5, 9,  13,
                                                       2, 6, 10, 14, 3, 7, 11, 15};
    store_i(to[b].hi, shuffle(load_i(from[b].hi), load_lanes(kOrder)));
#else
    constexpr int kPlace[4] = {0, 2, 1, 3};  // of four values, as ActBlock has them
    for (int half = 0; half < 32; half += 16)
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j)
          to[b].q[half + 4 * i + kPlace[j]] = from[b].q[half + 4 * j + kPlace[i]];
#endif
  }
}

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
