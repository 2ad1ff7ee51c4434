// Dot products of narrow weights with two int8 halves on AVX2, for few tokens.
//
// vpmaddubsw multiplies 32 unsigned weights u with 32 halves and adds pairs as int16. Weights of up
// to six bits leave room there for the sums of some words (32 bits of a row, four values), so
// nothing is widened before a group's end:
//
//     lane (a row):  [ sum of u0 x0 + u1 x1 | sum of u2 x2 + u3 x3 ]      16 bits each
//     words * 2 * max|u - c| * 128 <= 2^15        8 words for |u - c| <= 16
//
// where c, the format's kCentre, comes off by the value that sums begin with: - c times the
// activations of the words that are added up. The group's end is one vpmaddwd, with the group's
// scale where that is a small integer. AVX-VNNI has vpdpbusd, which adds all four in 32 bits: the
// same integers.
//
// The activations are taken apart once per panel, for the eight row groups of a band.
#pragma once

#include "cpu/kernels/halves_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

template <class Q, class... Qs>
constexpr bool is_one_of(quant::TypeList<Qs...>) {
  return ((Q::kGgufId == Qs::kGgufId) || ...);
}

#if defined(KT_ISA_AVX2)

// An ActBlock taken apart: its values in their own order, q = 256 * hi + lo.
struct ByteBlock {
  float scale;
  float hi_scale;        // 256 * scale
  float scaled_sum;      // of ActBlock
  float scaled_sums[2];  // scale * sum[half]
  // What sums over values 0..15 and 16..31 begin with; [2]: over all. Pairs of 16 bits, or with
  // AVX-VNNI their sum.
  int32_t hi_start[3], lo_start[3];
  int32_t sum;  // of q
  int8_t hi[32];
  int8_t lo[32];
};

// The formats whose kernels take them.
using InBytes =
    quant::TypeList<quant::Q4_0, quant::Q4_1, quant::Q5_0, quant::Q5_1, quant::Q2_K, quant::Q3_K,
                    quant::Q4_K, quant::Q5_K, quant::TQ2_0, quant::MXFP4, quant::NVFP4>;
template <class Q>
constexpr bool kInBytes = is_one_of<Q>(InBytes{});
template <bool in_bytes>
struct BlockKind {
  using Type = ActBlock;
};
template <>
struct BlockKind<true> {
  using Type = ByteBlock;
};
template <class Q>
using BlockOf = typename BlockKind<kInBytes<Q>>::Type;

// What comes off their integers.
template <class Q>
constexpr int kCentre = Q::kOffset;
template <>
constexpr int kCentre<quant::Q5_1> = 16;

// Sums of words of one token: of products with hi and with lo.
struct ByteSums {
  I hi, lo;
};

// What a lane's two slots begin with, as an integer.
KT_INLINE int32_t start_of(__m128i slots) {
#if defined(KT_VNNI)
  slots = _mm_madd_epi16(slots, _mm_set1_epi16(1));
#endif
  return _mm_cvtsi128_si32(slots);
}

// Starts of one half of a block, whose bytes are given. Where all sixteen bytes of a slot are -128
// and the centre is 16, the start over all 32 would be 2^15: it is one less, and so are the sums.
KT_INLINE void store_starts(__m256i bytes, int centre, int32_t* start) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
  __m256i sum = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0xB1));
  sum = _mm256_add_epi16(sum, _mm256_shuffle_epi32(sum, 0x4E));
  sum = _mm256_mullo_epi16(sum, _mm256_set1_epi16((int16_t)-centre));
  const __m128i first = _mm256_castsi256_si128(sum), second = _mm256_extracti128_si256(sum, 1);
  start[0] = start_of(first);
  start[1] = start_of(second);
  start[2] = start_of(_mm_adds_epi16(first, second));
}

template <int centre>
KT_INLINE void take_apart(const ActBlock& from, ByteBlock& to) {
  const I q = load_i(from.q);
  const __m256i half = _mm256_set1_epi16(128);
  const I hi = {_mm256_srai_epi16(_mm256_add_epi16(q.a, half), 8),
                _mm256_srai_epi16(_mm256_add_epi16(q.b, half), 8)};
  // Packing takes the halves of registers by turns, and q has the second and third of four swapped.
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
  const auto pack = [&](__m256i a, __m256i b) __attribute__((always_inline)) {
    const __m256i turns = _mm256_permute4x64_epi64(_mm256_packs_epi16(a, b), 0xD8);
    return _mm256_shuffle_epi8(turns, order);
  };
  const __m256i high = pack(hi.a, hi.b);
  const __m256i low = pack(_mm256_sub_epi16(q.a, _mm256_slli_epi16(hi.a, 8)),
                           _mm256_sub_epi16(q.b, _mm256_slli_epi16(hi.b, 8)));
  _mm256_storeu_si256((__m256i*)to.hi, high);
  _mm256_storeu_si256((__m256i*)to.lo, low);
  to.scale = from.scale;
  to.hi_scale = 256.0f * from.scale;
  to.scaled_sum = from.scaled_sum;
  to.scaled_sums[0] = from.scale * (float)from.sum[0];
  to.scaled_sums[1] = from.scale * (float)from.sum[1];
  to.sum = from.sum[0] + from.sum[1];
  if constexpr (centre != 0) {
    store_starts(high, centre, to.hi_start);
    store_starts(low, centre, to.lo_start);
  }
}

// Sums that begin with the start of values 0..15 (part 0), 16..31 (1) or all 32 (2),
// of weights that are used 2^shift times.
KT_INLINE ByteSums sums_from(const ByteBlock* x, int part, int shift = 0) {
  const __m256i hi = broadcast_four(x->hi_start + part), lo = broadcast_four(x->lo_start + part);
#if defined(KT_VNNI)
  const __m256i high = _mm256_slli_epi32(hi, shift), low = _mm256_slli_epi32(lo, shift);
#else
  const __m256i high = _mm256_slli_epi16(hi, shift), low = _mm256_slli_epi16(lo, shift);
#endif
  return {{high, high}, {low, low}};
}

KT_INLINE __m256i add_products(__m256i sum, __m256i u, __m256i x) {
#if defined(KT_VNNI)
  return dot_bytes(sum, u, x);
#else
  sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(u, x));
  asm("" : "+x"(sum));  // or GCC 12 adds in another order, with more registers than there are
  return sum;
#endif
}

KT_INLINE __m256i products(__m256i u, __m256i x) {
#if defined(KT_VNNI)
  return dot_bytes(_mm256_setzero_si256(), u, x);
#else
  return _mm256_maddubs_epi16(u, x);
#endif
}

// bytes . the four values at `at` of a block
KT_INLINE ByteSums first_sums(I u, const ByteBlock* x, int at) {
  const __m256i hi = broadcast_four(x->hi + at), lo = broadcast_four(x->lo + at);
  return {{products(u.a, hi), products(u.b, hi)}, {products(u.a, lo), products(u.b, lo)}};
}

// += bytes . the four values at `at` of a block
KT_INLINE void mac(ByteSums& sums, I u, const ByteBlock* x, int at) {
  const __m256i hi = broadcast_four(x->hi + at), lo = broadcast_four(x->lo + at);
  sums.hi = {add_products(sums.hi.a, u.a, hi), add_products(sums.hi.b, u.b, hi)};
  sums.lo = {add_products(sums.lo.a, u.a, lo), add_products(sums.lo.b, u.b, lo)};
}

// 256 hi + lo
KT_INLINE I acc_sum(const ByteSums& sums) {
#if defined(KT_VNNI)
  return add(shl(sums.hi, 8), sums.lo);
#else
  const __m256i one = _mm256_set1_epi16(1), many = _mm256_set1_epi16(256);
  return {_mm256_add_epi32(_mm256_madd_epi16(sums.hi.a, many), _mm256_madd_epi16(sums.lo.a, one)),
          _mm256_add_epi32(_mm256_madd_epi16(sums.hi.b, many), _mm256_madd_epi16(sums.lo.b, one))};
#endif
}

// As those of halves_inl.h.
template <class Q>
KT_INLINE ByteSums group_start(const ByteBlock* x, int part) {
  return kCentre<Q> == 0 ? ByteSums{set_i(0), set_i(0)} : sums_from(x, part);
}
template <class Q>
KT_INLINE I group_dot(const ByteSums& sums, const ByteBlock* x) {
  const I dot = acc_sum(sums);
  if constexpr (kCentre<Q> == Q::kOffset) return dot;
  return add(dot, set_i((kCentre<Q> - Q::kOffset) * x->sum));
}

// The scale of a group, a small integer: pairs of 16 bits, or with AVX-VNNI a float. Products below
// 2^24 are exact in both, and a sum of two is rounded once in both.
#if defined(KT_VNNI)
typedef F GroupScale;
KT_INLINE GroupScale group_scale(I pairs) { return to_float(sar(shl(pairs, 16), 16)); }
KT_INLINE F scaled(I sums, GroupScale s) { return mul(to_float(sums), s); }
KT_INLINE F scaled(I a, GroupScale s, I b, GroupScale t) {
  return fma(to_float(b), t, scaled(a, s));
}
#else
typedef I GroupScale;
KT_INLINE GroupScale group_scale(I pairs) { return pairs; }
KT_INLINE I pairs_scaled(I sums, GroupScale s) {
  return {_mm256_madd_epi16(sums.a, s.a), _mm256_madd_epi16(sums.b, s.b)};
}
KT_INLINE F scaled(I sums, GroupScale s) { return to_float(pairs_scaled(sums, s)); }
KT_INLINE F scaled(I a, GroupScale s, I b, GroupScale t) {
  return to_float(add(pairs_scaled(a, s), pairs_scaled(b, t)));
}
#endif

// The same address, of which the compiler does not know that: loads from it are not shared with
// others', for which it would have to keep more than the registers hold.
KT_INLINE const uint8_t* afresh(const uint8_t* p) {
  asm volatile("" : "+r"(p));
  return p;
}

// Byte `b` of every lane: as a lane, as a pair of 16 bits, and as the upper bytes of a pair.
struct LaneByte {
  alignas(16) uint8_t lane[4][16], pair[4][16], upper[4][16];
  constexpr LaneByte() : lane(), pair(), upper() {
    for (int b = 0; b < 4; ++b) {
      for (int i = 0; i < 16; ++i) {
        const uint8_t at = (uint8_t)(i / 4 * 4 + b);
        lane[b][i] = i % 4 == 0 ? at : 0x80;
        pair[b][i] = i % 2 == 0 ? at : 0x80;
        upper[b][i] = i % 2 == 1 ? at : 0x80;
      }
    }
  }
};
constexpr LaneByte kLaneByte;

KT_INLINE I lane_byte(I w, int b) { return shuffle(w, load_lanes(kLaneByte.lane[b])); }
KT_INLINE GroupScale unsigned_scale(I w, int b) {
  return group_scale(shuffle(w, load_lanes(kLaneByte.pair[b])));
}
KT_INLINE GroupScale signed_scale(I w, int b) {
  const I s = shuffle(w, load_lanes(kLaneByte.upper[b]));
  return group_scale({_mm256_srai_epi16(s.a, 8), _mm256_srai_epi16(s.b, 8)});
}

// total += (256 hi + lo) * x.scale, of dot products that have their scale.
KT_INLINE F add_halves(F total, F hi, F lo, const ByteBlock* x) {
  return fma(hi, set_f(x->hi_scale), fma(lo, set_f(x->scale), total));
}

// Of four fields of two bits in each byte the one of v, for 2 and 3 out of the upper nibble: once
// for 0 and 2, fourfold for 1 and 3.
KT_INLINE I two_bits(I w, int v) {
  return band(v < 2 ? w : shr(w, 4), bytes_of(v % 2 == 0 ? 0x03 : 0x0C));
}

#else

template <class Q>
using BlockOf = ActBlock;

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
