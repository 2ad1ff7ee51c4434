// gemv_record of the K-quants of two and three bits: blocks of 256 values, groups of 16.
#pragma once

#include "cpu/kernels/k_scales_inl.h"
#if defined(__AVX512VBMI__)
#include "cpu/kernels/vbmi_inl.h"
#endif

namespace kt::cpu::KT_ISA {
namespace {

#if defined(KT_ISA_AVX512)

// Of Q2_K and Q3_K, whose weights are soon read: per 16 of them the sums of the two halves, the products
// with their scale and the conversion to float are what takes the time. The scales are small integers, so
// 32 values are scaled and added up as integers,
//     dot = sum over two groups of s (256 hi + lo)      exact: 16-bit sums times 16-bit scales, in pairs
//     a = fma(float(dot), x.scale, a)                   per 32, from 0
//     b = fma(float(sum of m sum q), x.scale, b)        minima
// and a record ends with total = fma(a, d, total), total = fma(b, -dmin, total). Q2_K has an a for runs
// that are used once and one for those used fourfold. The order is another one
// than that of gemm_inl.h, so these kernels take any number of tokens (FormatKernels::few_for_all).
//
// Bounds: sums of 16 products of bytes up to 12 and halves are below 2^15, as pairs with (s, 256 s),
// |s| <= 63, below 2^30 for two groups.

// A group's two sums in the 16-bit halves of a lane: lo, hi.
KT_INLINE I sum_pair(const Acc& acc) {
  return {_mm512_mask_mov_epi16(acc.lo, 0xAAAAAAAA, _mm512_slli_epi32(acc.hi, 16))};
}

// s = byte b of every lane as the pair (s, 256 s).
KT_INLINE I scale_pair(I w, int b) {
  struct Control {
    alignas(16) uint8_t of[4][16];
    constexpr Control() : of() {
      for (int byte = 0; byte < 4; ++byte)
        for (int i = 0; i < 16; ++i)
          of[byte][i] = (uint8_t)(i % 4 == 0 || i % 4 == 3 ? i / 4 * 4 + byte : 0x80);
    }
  };
  static constexpr Control kControl;
  return shuffle(w, load_lanes(kControl.of[b]));
}

KT_INLINE I add_pairs(I sum, I a, I b) {
  asm("vpdpwssd %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
  return sum;
}
KT_INLINE I sub_pairs(I a, I b) { return {_mm512_sub_epi16(a.v, b.v)}; }
KT_INLINE I four_sums(const ActBlock* x, int half) {
  int32_t pair;
  memcpy(&pair, x->four_sums[half], 4);
  return set_i(pair);
}

// A line in a register: GCC would rather load it anew for every use, and lines are what there is
// least of.
KT_INLINE I load_once(const uint8_t* p) {
  I w = load_i(p);
  asm("" : "+v"(w.v));
  return w;
}
template <int T>
KT_INLINE I take_once(const uint8_t* p) {
  I w = take_line<T>(p);
  asm("" : "+v"(w.v));
  return w;
}

// 128 values of a record: four runs of 32, in each two groups of 16. step(j, u) gives four values of
// each run, j = 0..7; finish(run, half, acc, token) takes a group's sums.
template <int T, class Step, class Finish>
KT_INLINE void scaled_runs(const ActBlock* const* y, Step step, Finish finish) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    Acc acc[4][T];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) KT_TOKENS acc[v][t] = acc_from(0);
#pragma GCC unroll 1
    for (int j = 4 * half; j < 4 * half + 4; ++j) {
      I u[4];
      step(j, u);
      KT_TOKENS {
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) mac(acc[v][t], u[v], y[t] + v, 4 * j);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) finish(v, half, acc[v]);
  }
}

template <int T>
KT_INLINE void gemv_record(quant::Q2_K, const uint8_t* record, const ActBlock* const* x, F* total) {
  using Q = quant::Q2_K;
  const I three = bytes_of(0x03), twelve = bytes_of(0x0C), nibble = bytes_of(0x0F);
  const uint8_t* p = quant::r16_word<Q>(record, 4);
  // Runs 1 and 3 are used in place, fourfold; the sums of activations are fourfold too.
  F a[2][T], b[T];
  KT_TOKENS a[0][t] = a[1][t] = b[t] = zero_f();
#pragma GCC unroll 1
  for (int h = 0; h < 2; ++h, p += 512) {
    const ActBlock* y[T];
    KT_TOKENS y[t] = x[t] + 4 * h;
    const I bytes[2] = {word<Q>(record, 2 * h), word<Q>(record, 2 * h + 1)};
    const I scales[2] = {band(bytes[0], nibble), band(bytes[1], nibble)};
    const I mins[2] = {band(shr(bytes[0], 4), nibble), band(shr(bytes[1], 4), nibble)};
    I dot[4][T], min[4][T];
    scaled_runs<T>(
        y,
        [&](int j, I* u) __attribute__((always_inline)) {
          const I w = take_once<T>(p + 64 * j), above = shr(w, 4);
          u[0] = band(w, three);
          u[1] = band(w, twelve);
          u[2] = band(above, three);
          u[3] = band(above, twelve);
        },
        [&](int v, int half, const Acc* acc) __attribute__((always_inline)) {
          const int byte = v % 2 * 2 + half;
          const I s = scale_pair(scales[v / 2], byte), m = scale_pair(mins[v / 2], byte);
          KT_TOKENS {
            dot[v][t] = add_pairs(half ? dot[v][t] : set_i(0), sum_pair(acc[t]), s);
            min[v][t] = add_pairs(half ? min[v][t] : set_i(0), m, four_sums(y[t] + v, half));
          }
        });
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      KT_TOKENS {
        const F scale = set_f(y[t][v].scale);
        a[v % 2][t] = fma(to_float(dot[v][t]), scale, a[v % 2][t]);
        b[t] = fma(to_float(min[v][t]), scale, b[t]);
      }
    }
  }
  const I head = word<Q>(record, 20);
  const F d = half_lanes(head), dmin = mul(half_lanes(shr(head, 16)), set_f(-0.25f));
  KT_TOKENS {
    total[t] = fma(fma(a[1][t], set_f(0.25f), a[0][t]), d, total[t]);
    total[t] = fma(b[t], dmin, total[t]);
  }
}

#if defined(__AVX512VBMI__)

// Two values of Q3_K in six bits: both low parts, then both third bits.
struct ThreeBits {
  alignas(64) uint8_t first[64], second[64];
  constexpr ThreeBits() : first(), second() {
    for (int i = 0; i < 64; ++i) {
      first[i] = (uint8_t)((i & 3) | (i >> 4 & 1) << 2);
      second[i] = (uint8_t)((i >> 2 & 3) | (i >> 5 & 1) << 2);
    }
  }
};
constexpr ThreeBits kThreeBits;

// u = four values of each byte of w, whose third bits are bits 4 h to 4 h + 3 of q.
KT_INLINE void third_bits(I q, I w, int h, I* u) {
  const I nibble = bytes_of(0x0F);
  const I z[2] = {select(nibble, w, h == 0 ? shl(q, 4) : q),
                  select(nibble, shr(w, 4), h == 0 ? shl(q, 2) : shr(q, 2))};
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v)
    u[v] = find_in_64(v % 2 == 0 ? kThreeBits.first : kThreeBits.second, z[v / 2]);
}

#else

KT_INLINE void third_bits(I q, I w, int h, I* u) {
  const I three = bytes_of(0x03), seven = bytes_of(0x07);
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    const int left = 2 - 4 * h - v;
    const I third = left > 0 ? shl(q, left) : left < 0 ? shr(q, -left) : q;
    u[v] = band(select(three, v == 0 ? w : shr(w, 2 * v), third), seven);
  }
}

#endif

template <int T>
KT_INLINE void gemv_record(quant::Q3_K, const uint8_t* record, const ActBlock* const* x, F* total) {
  using Q = quant::Q3_K;
  // Both the values and the scales count once; (lo, hi) have the offset of four taken off.
  const F d = head_halves(record);
  I six[4];
  six_bit_scales(record, six);
  const I middle = set_i(32 | 8192 << 16);
  const uint8_t* thirds = quant::r16_word<Q>(record, 0);
  F a[T];
  KT_TOKENS a[t] = zero_f();
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const uint8_t* p = thirds + (h == 0 ? 64 : 1024);
    const int stride = h == 0 ? 128 : 64;
    const ActBlock* y[T];
    KT_TOKENS y[t] = x[t] + 4 * h;
    I dot[4][T];
    scaled_runs<T>(
        y,
        [&](int j, I* u) __attribute__((always_inline)) {
          const I q = load_once(thirds + 128 * j), w = take_once<T>(p + stride * j);
          third_bits(q, w, h, u);
        },
        [&](int v, int half, const Acc* acc) __attribute__((always_inline)) {
          const I s = sub_pairs(scale_pair(six[2 * h + v / 2], v % 2 * 2 + half), middle);
          KT_TOKENS {
            const I sums = sub_pairs(sum_pair(acc[t]), four_sums(y[t] + v, half));
            dot[v][t] = add_pairs(half ? dot[v][t] : set_i(0), sums, s);
          }
        });
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v)
      KT_TOKENS a[t] = fma(to_float(dot[v][t]), set_f(y[t][v].scale), a[t]);
  }
  KT_TOKENS total[t] = fma(a[t], d, total[t]);
}

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
