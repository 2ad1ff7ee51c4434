// gemv_record of the K-quants on AVX2, without Q6_K: its words are in groups of three for four runs
// of values, which the registers do not hold as bytes' sums, and read several times they come from
// memory more slowly than gemv_k_inl.h takes them. Their scales are small integers, so that a
// group's sums are scaled where they are widened:
//
//     a = fma(sum s hi, 256 x.scale, fma(sum s lo, x.scale, a))      per 32 values, from 0
//     b = fma(m, x.scale * sum of q, b)                              minima
//
// and a record ends with total = fma(a, d, total), total = fma(b, -dmin, total). The sums of
// integers are below 2^24 in size, so floats hold them exactly. The order is another one than that
// of gemm_inl.h, so these kernels take any number of tokens (FormatKernels::few_for_all).
#pragma once

#include "cpu/kernels/byte_halves_inl.h"
#include "cpu/kernels/k_scales_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

#if defined(KT_ISA_AVX2)

// sums = words [0, kWords) . the values from `at` on; step(j) gives word j.
template <int kWords, int T, class Step>
KT_INLINE void sum_words(const ByteBlock* const* y, int at, ByteSums* sums, Step step) {
#pragma GCC unroll 8
  for (int j = 0; j < kWords; ++j) {
    const I u = step(j);
    KT_TOKENS {
      if (j == 0)
        sums[t] = first_sums(u, y[t], at);
      else
        mac(sums[t], u, y[t], at + 4 * j);
    }
  }
}

// The end of a record with minima, of which `head` has d and dmin; dots count 1 / factor times.
template <int T>
KT_INLINE void add_record(I head, float factor, const F* a, const F* b, F* total) {
  const F d = mul(half_lanes(head), set_f(factor)), dmin = neg(half_lanes(shr(head, 16)));
  KT_TOKENS total[t] = fma(b[t], dmin, fma(a[t], d, total[t]));
}

template <int T>
KT_INLINE void gemv_record(quant::Q4_K, const uint8_t* record, const ByteBlock* const* x,
                           F* total) {
  using Q = quant::Q4_K;
  const KScales bytes = k_scales<Q>(record);
  const uint8_t* p = quant::r16_word<Q>(record, 4);
  I scales = bytes.scale[0], mins = bytes.min[0];
  F a[T], b[T];
  KT_TOKENS a[t] = b[t] = zero_f();
#pragma GCC unroll 1
  for (int c = 0; c < 4; ++c, p += 512) {
    if (c == 2) {
      scales = bytes.scale[1];
      mins = bytes.min[1];
    }
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; ++odd) {
      const ByteBlock* y[T];
      KT_TOKENS y[t] = x[t] + 2 * c + odd;
      const uint8_t* lines = afresh(p);
      ByteSums sums[T];
      sum_words<8, T>(y, 0, sums, [&](int j) __attribute__((always_inline)) {
        return odd ? high_nibbles(load_i(lines + 64 * j))
                   : low_nibbles(take_line<T>(lines + 64 * j));
      });
      const GroupScale s = unsigned_scale(scales, odd);
      const F m = to_float(lane_byte(mins, odd));
      KT_TOKENS {
        a[t] = add_halves(a[t], scaled(sums[t].hi, s), scaled(sums[t].lo, s), y[t]);
        b[t] = fma(m, set_f(y[t]->scaled_sum), b[t]);
      }
    }
    scales = shr(scales, 16);
    mins = shr(mins, 16);
  }
  add_record<T>(word<Q>(record, 0), 1.0f, a, b, total);
}

template <int T>
KT_INLINE void gemv_record(quant::Q5_K, const uint8_t* record, const ByteBlock* const* x,
                           F* total) {
  using Q = quant::Q5_K;
  const KScales bytes = k_scales<Q>(record);
  const uint8_t* fifths = quant::r16_word<Q>(record, 4);
  const I fifth = bytes_of(0x10);
  F a[T], b[T];
  KT_TOKENS a[t] = b[t] = zero_f();
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    I scales = bytes.scale[h], mins = bytes.min[h];
#pragma GCC unroll 1
    for (int c = 2 * h; c < 2 * h + 2; ++c) {
      const uint8_t* p = fifths + (c == 0 ? 64 : 512 * c + 512);
      const int stride = c == 0 ? 128 : 64;
#pragma GCC unroll 2
      for (int odd = 0; odd < 2; ++odd) {
        // Bit 2 c + odd of a byte goes to bit 4.
        const int left = 4 - 2 * c - odd;
        const ByteBlock* y[T];
        KT_TOKENS y[t] = x[t] + 2 * c + odd;
        ByteSums sums[2][T];
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const uint8_t* words = afresh(fifths) + 512 * half;
          const uint8_t* lines = afresh(p) + 4 * stride * half;
          sum_words<4, T>(y, 16 * half, sums[half], [&](int j) __attribute__((always_inline)) {
            const I q = load_i(words + 128 * j);
            const I bits = band(h == 0 ? shl(q, left) : shr(q, -left), fifth);
            const uint8_t* line = lines + stride * j;
            return bor(odd ? high_nibbles(load_i(line)) : low_nibbles(take_line<T>(line)), bits);
          });
        }
        const GroupScale s = unsigned_scale(scales, odd);
        const F m = to_float(lane_byte(mins, odd));
        KT_TOKENS {
          a[t] = add_halves(a[t], scaled(sums[0][t].hi, s, sums[1][t].hi, s),
                            scaled(sums[0][t].lo, s, sums[1][t].lo, s), y[t]);
          b[t] = fma(m, set_f(y[t]->scaled_sum), b[t]);
        }
      }
      scales = shr(scales, 16);
      mins = shr(mins, 16);
    }
  }
  add_record<T>(word<Q>(record, 0), 1.0f, a, b, total);
}

// Of 128 values of Q2_K and Q3_K, runs 1 and 3 of 32 are used fourfold (two_bits), and the scales
// of runs 0 and 2 are.
template <int T>
KT_INLINE void gemv_record(quant::Q2_K, const uint8_t* record, const ByteBlock* const* x,
                           F* total) {
  using Q = quant::Q2_K;
  const uint8_t* p = quant::r16_word<Q>(record, 4);
  const I nibble = bytes_of(0x0F);
  F a[T], b[T];
  KT_TOKENS a[t] = b[t] = zero_f();
#pragma GCC unroll 1
  for (int h = 0; h < 2; ++h, p += 512) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const ByteBlock* y[T];
      KT_TOKENS y[t] = x[t] + 4 * h + v;
      ByteSums sums[2][T];
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const uint8_t* lines = afresh(p) + 256 * half;
        sum_words<4, T>(y, 16 * half, sums[half], [&](int j) __attribute__((always_inline)) {
          const uint8_t* line = lines + 64 * j;
          return two_bits(v == 0 ? take_line<T>(line) : load_i(line), v);
        });
      }
      const I bytes = word<Q>(record, 2 * h + v / 2);
      const I scales = v % 2 == 0 ? band(shl(bytes, 2), bytes_of(0x3C)) : band(bytes, nibble);
      const I mins = band(shr(bytes, 4), nibble);
      const GroupScale s = unsigned_scale(scales, v % 2 * 2),
                       r = unsigned_scale(scales, v % 2 * 2 + 1);
      const F m = to_float(lane_byte(mins, v % 2 * 2)),
              n = to_float(lane_byte(mins, v % 2 * 2 + 1));
      KT_TOKENS {
        a[t] = add_halves(a[t], scaled(sums[0][t].hi, s, sums[1][t].hi, r),
                          scaled(sums[0][t].lo, s, sums[1][t].lo, r), y[t]);
        b[t] = fma(n, set_f(y[t]->scaled_sums[1]), fma(m, set_f(y[t]->scaled_sums[0]), b[t]));
      }
    }
  }
  add_record<T>(word<Q>(record, 20), 0.25f, a, b, total);
}

template <int T>
KT_INLINE void gemv_record(quant::Q3_K, const uint8_t* record, const ByteBlock* const* x,
                           F* total) {
  using Q = quant::Q3_K;
  I six[4];
  six_bit_scales(record, six);
  const uint8_t* thirds = quant::r16_word<Q>(record, 0);
  F a[T];
  KT_TOKENS a[t] = zero_f();
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const uint8_t* p = thirds + (h == 0 ? 64 : 1024);
    const int stride = h == 0 ? 128 : 64;
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      // Bit 4 h + v of a byte goes above the two.
      const int left = (v % 2 == 0 ? 2 : 4) - 4 * h - v;
      const I third = bytes_of(v % 2 == 0 ? 0x04 : 0x10);
      const ByteBlock* y[T];
      KT_TOKENS y[t] = x[t] + 4 * h + v;
      ByteSums sums[2][T];
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        KT_TOKENS sums[half][t] = sums_from(y[t], half, v % 2 * 2);
        const uint8_t *words = afresh(thirds), *lines = afresh(p);
#pragma GCC unroll 4
        for (int j = 4 * half; j < 4 * half + 4; ++j) {
          const I q = load_i(words + 128 * j), w = load_i(lines + stride * j);
          const I bits = left > 0 ? shl(q, left) : left < 0 ? shr(q, -left) : q;
          const I u = bor(two_bits(w, v), band(bits, third));
          KT_TOKENS mac(sums[half][t], u, y[t], 4 * j);
        }
      }
      // s - 32 or four times that, as signed bytes.
      const I scales = v % 2 == 0
                           ? bxor(band(shl(six[2 * h + v / 2], 2), bytes_of(0xFC)), bytes_of(0x80))
                           : add_bytes(six[2 * h + v / 2], bytes_of(0xE0));
      const GroupScale s = signed_scale(scales, v % 2 * 2), r = signed_scale(scales, v % 2 * 2 + 1);
      KT_TOKENS a[t] = add_halves(a[t], scaled(sums[0][t].hi, s, sums[1][t].hi, r),
                                  scaled(sums[0][t].lo, s, sums[1][t].lo, r), y[t]);
    }
  }
  const F d = mul(head_halves(record), set_f(0.25f));
  KT_TOKENS total[t] = fma(a[t], d, total[t]);
}

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
