// gemv_record of IQ2 and IQ3 where bytes can be permuted across a register (AVX-512 VBMI): one
// instruction looks 64 indices up in 128 bytes of a table, low and high bytes of points apart. The
// other bits of the indices choose between the results. x points to reordered activations.
//
// A table is loaded for every 64 indices, and loads are what there is least of: two groups are
// looked up side by side. IQ2 goes through a record's points first and multiplies then, so that a
// group's look-ups do not wait for the sums before them.
#pragma once

#include "cpu/kernels/points_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

// A codebook by bytes: the low and the high one of every point.
template <int n>
struct ByteBook {
  alignas(64) uint8_t low[n], high[n];
  constexpr explicit ByteBook(const uint16_t* from) : low(), high() {
    for (int i = 0; i < n; ++i) {
      low[i] = (uint8_t)from[i];
      high[i] = (uint8_t)(from[i] >> 8);
    }
  }
};
constexpr ByteBook<256> kIq2xxsBytes(quant::kIq2xxsGrid);
constexpr ByteBook<512> kIq2xsBytes(quant::kIq2xsGrid);
constexpr ByteBook<1024> kIq2sBytes(quant::kIq2sGrid);
constexpr ByteBook<256> kIq3xxsBytes(Nibbles<256>(quant::kIq3xxsGrid).points);
constexpr ByteBook<512> kIq3sBytes(Nibbles<512>(quant::kIq3sGrid).points);

// 64 indices: their low bytes, and bits 7, 8 and 9 (as far as there are) as masks.
struct Indices {
  __m512i low;
  __mmask64 bit[3];
};
KT_INLINE Indices indices_of(I low) { return {low.v, {_mm512_movepi8_mask(low.v), 0, 0}}; }
KT_INLINE __mmask64 any_set(I w, uint32_t bits) {
  return _mm512_test_epi8_mask(w.v, _mm512_set1_epi32((int32_t)bits));
}

// out[i] = table[index[i]] for K times 64 indices.
template <int n, int K>
KT_INLINE void find_bytes(const uint8_t* table, const Indices (&index)[K], __m512i (&out)[K]) {
  if constexpr (n == 128) {
    const __m512i first = _mm512_load_si512(table), second = _mm512_load_si512(table + 64);
#pragma GCC unroll 2
    for (int k = 0; k < K; ++k) {
      out[k] = index[k].low;  // the form that keeps the table
      asm("vpermi2b %2, %1, %0" : "+v"(out[k]) : "v"(first), "v"(second));
    }
  } else {
    constexpr int bit = n == 256 ? 0 : n == 512 ? 1 : 2;
    __m512i above[K];
    find_bytes<n / 2, K>(table, index, out);
    find_bytes<n / 2, K>(table + n / 2, index, above);
#pragma GCC unroll 2
    for (int k = 0; k < K; ++k) out[k] = _mm512_mask_mov_epi8(out[k], index[k].bit[bit], above[k]);
  }
}

// Points found: byte p of a lane of low and of high are point p's.
template <int K>
struct Found {
  __m512i low[K], high[K];
};
template <int n, int K>
KT_INLINE Found<K> look_up_bytes(const ByteBook<n>& book, const Indices (&index)[K]) {
  Found<K> found;
  find_bytes<n, K>(book.low, index, found.low);
  find_bytes<n, K>(book.high, index, found.high);
  return found;
}

// Of two vectors' lanes the bytes b0 to b3: 0 to 3 are a's, 4 to 7 b's.
struct TwoLanes {
  alignas(64) uint8_t control[64];
  constexpr TwoLanes(int b0, int b1, int b2, int b3) : control() {
    const int bytes[4] = {b0, b1, b2, b3};
    for (int i = 0; i < 64; ++i)
      control[i] = (uint8_t)(i / 4 * 4 + bytes[i % 4] % 4 + bytes[i % 4] / 4 * 64);
  }
};
template <int b0, int b1, int b2, int b3>
KT_INLINE I pick_of_two(__m512i a, __m512i b) {
  static constexpr TwoLanes kBytes(b0, b1, b2, b3);
  return {_mm512_permutex2var_epi8(a, _mm512_load_si512(kBytes.control), b)};
}

// The points of IQ2 of 32 values, two in a lane: 0 and 1, and 2 and 3.
using PointPairs = uint8_t[2][64];
KT_INLINE void load_points(const PointPairs& from, I (&points)[2]) {
  points[0] = load_i(from[0]);
  points[1] = load_i(from[1]);
}

// Those of a record. indices(g) gives group g's.
template <int T, int n, class IndicesOf>
KT_INLINE void find_record(const ByteBook<n>& book, PointPairs* points, IndicesOf indices) {
#pragma GCC unroll 1
  for (int g = 0; g < 8; g += 2) {
    const Indices index[2] = {indices(g), indices(g + 1)};
    const Found<2> found = look_up_bytes<n, 2>(book, index);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      store_i(points[g + i][0], pick_of_two<0, 4, 1, 5>(found.low[i], found.high[i]));
      store_i(points[g + i][1], pick_of_two<2, 6, 3, 7>(found.low[i], found.high[i]));
    }
  }
}

template <int T>
KT_INLINE void gemv_record(quant::IQ2_XXS, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  alignas(64) PointPairs found[8];
  find_record<T>(kIq2xxsBytes, found, [&](int g) __attribute__((always_inline)) {
    return indices_of(take_line<T>(quant::r16_word<quant::IQ2_XXS>(record, 2 * g)));
  });
  iq2_xxs_record<T>(record, x, total, [&](int g, I (&points)[2]) __attribute__((always_inline)) {
    load_points(found[g], points);
  });
}

template <int T>
KT_INLINE void gemv_record(quant::IQ2_XS, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ2_XS;
  alignas(64) PointPairs found[8];
  alignas(64) uint8_t upper[8][64];
  find_record<T>(kIq2xsBytes, found, [&](int g) __attribute__((always_inline)) {
    const I v = take_line<T>(quant::r16_word<Q>(record, 2 * g));
    const I w = take_line<T>(quant::r16_word<Q>(record, 2 * g + 1));
    const I above = pick_of_two<1, 3, 5, 7>(v.v, w.v);  // bit 8 of the index, seven signs
    store_i(upper[g], above);
    Indices index = indices_of(pick_of_two<0, 2, 4, 6>(v.v, w.v));
    index.bit[1] = any_set(above, 0x01010101);
    return index;
  });
  iq2_record<Q, T>(record, 16, x, total, [&](int g, I (&points)[2]) __attribute__((always_inline)) {
    load_points(found[g], points);
    return even_signs(band(shr(load_i(upper[g]), 1), bytes_of(0x7F)));
  });
}

template <int T>
KT_INLINE void gemv_record(quant::IQ2_S, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ2_S;
  alignas(64) PointPairs found[8];
  find_record<T>(kIq2sBytes, found, [&](int g) __attribute__((always_inline)) {
    // Bits 8 and 9 of point p are bits 2 p and 2 p + 1 of one byte.
    const I bits = shr(word<Q>(record, 16 + g / 4), g % 4 * 8);
    const I above = pick<0, 0, 0, 0>(bits);
    Indices index = indices_of(take_line<T>(quant::r16_word<Q>(record, g)));
    index.bit[1] = any_set(above, 0x40100401);
    index.bit[2] = any_set(above, 0x80200802);
    return index;
  });
  iq2_record<Q, T>(record, 18, x, total, [&](int g, I (&points)[2]) __attribute__((always_inline)) {
    load_points(found[g], points);
    return take_line<T>(quant::r16_word<Q>(record, 8 + g));
  });
}

template <int n>
KT_INLINE Iq3Points iq3_points(const ByteBook<n>& book, Indices indices) {
  const Indices index[1] = {indices};
  const Found<1> found = look_up_bytes<n, 1>(book, index);
  return {{found.low[0]}, {found.high[0]}};
}

template <int T>
KT_INLINE void gemv_record(quant::IQ3_XXS, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  iq3_xxs_record<T>(record, x, total, [](I w) __attribute__((always_inline)) {
    return iq3_points(kIq3xxsBytes, indices_of(w));
  });
}

template <int T>
KT_INLINE void gemv_record(quant::IQ3_S, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  iq3_s_record<T>(record, x, total, [](I w, I bits, int half) __attribute__((always_inline)) {
    Indices index = indices_of(w);
    index.bit[1] = any_set(pick<0, 0, 0, 0>(bits), 0x08040201u << 4 * half);
    return iq3_points(kIq3sBytes, index);
  });
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
