// gemv_record of the K-quants of four to six bits: blocks of 256 values with two levels of scales, in
// groups of 32 (Q4_K, Q5_K) or 16 (Q6_K).
#pragma once

#include "cpu/kernels/k_scales_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

#if defined(KT_ISA_AVX512)

// Q4_K and Q5_K.
struct KHead {
  F d, d_odd, dmin;  // d_odd: of odd groups, whose bytes are used as a multiple
  KScales bytes;
};

template <class Q>
KT_INLINE KHead k_head(const uint8_t* record, float odd) {
  const I first = word<Q>(record, 0);
  const F d = half_lanes(first);
  return {d, mul(d, set_f(odd)), neg(half_lanes(shr(first, 16))), k_scales<Q>(record)};
}

// Two groups of 32 side by side, a step giving four values of each; with minima. Their scales are
// the low bytes of `scales` and `mins`.
template <int T, class Step>
KT_INLINE void two_groups(const KHead& head, I scales, I mins, const ActBlock* const* y, F* total,
                          Step step) {
  Acc a[T], b[T];
  KT_TOKENS a[t] = b[t] = acc_from(0);
#pragma GCC unroll 2
  for (int j = 0; j < 8; ++j) {
    I u, v;
    step(j, u, v);
    KT_TOKENS {
      mac(a[t], u, y[t], 4 * j);
      mac(b[t], v, y[t] + 1, 4 * j);
    }
  }
  const F scale_a = mul(head.d, to_float(unsigned_byte(scales, 0)));
  const F scale_b = mul(head.d_odd, to_float(unsigned_byte(scales, 1)));
  const F min_a = mul(head.dmin, to_float(unsigned_byte(mins, 0)));
  const F min_b = mul(head.dmin, to_float(unsigned_byte(mins, 1)));
  KT_TOKENS {
    total[t] = add_dot(total[t], acc_sum(a[t]), y[t], scale_a);
    total[t] = add_min(total[t], y[t], min_a);
    total[t] = add_dot(total[t], acc_sum(b[t]), y[t] + 1, scale_b);
    total[t] = add_min(total[t], y[t] + 1, min_b);
  }
}

template <int T>
KT_INLINE void gemv_record(quant::Q4_K, const uint8_t* record, const ActBlock* const* x, F* total) {
  using Q = quant::Q4_K;
  const KHead head = k_head<Q>(record, 1.0f / 16);
  const uint8_t* p = quant::r16_word<Q>(record, 4);
  const I low = bytes_of(0x0F), high = bytes_of(0xF0);
  I scales = head.bytes.scale[0], mins = head.bytes.min[0];
#pragma GCC unroll 1
  for (int c = 0; c < 4; ++c, p += 512) {
    if (c == 2) {
      scales = head.bytes.scale[1];
      mins = head.bytes.min[1];
    }
    const ActBlock* y[T];
    KT_TOKENS y[t] = x[t] + 2 * c;
    two_groups<T>(head, scales, mins, y, total, [&](int j, I& u, I& v) {
      const I w = take_line<T>(p + 64 * j);
      u = band(w, low);
      v = band(w, high);
    });
    scales = shr(scales, 16);
    mins = shr(mins, 16);
  }
}

template <int T>
KT_INLINE void gemv_record(quant::Q5_K, const uint8_t* record, const ActBlock* const* x, F* total) {
  using Q = quant::Q5_K;
  const KHead head = k_head<Q>(record, 1.0f / 8);
  const I low = bytes_of(0x0F), low_five = bytes_of(0x1F), high = bytes_of(0x78),
          high_five = bytes_of(0xF8);
  I scales = head.bytes.scale[0], mins = head.bytes.min[0];
#pragma GCC unroll 1
  for (int c = 0; c < 4; ++c) {
    if (c == 2) {
      scales = head.bytes.scale[1];
      mins = head.bytes.min[1];
    }
    const uint8_t* bits = quant::r16_word<Q>(record, 4);
    const uint8_t* p = bits + (c == 0 ? 64 : 512 * c + 512);
    const int stride = c == 0 ? 128 : 64;
    // Bit 2 c of a byte goes to bit 4, bit 2 c + 1 to bit 7: the high nibble is used in eighths.
    const I to_four = set_i(4 - 2 * c), to_seven = set_i(6 - 2 * c);
    const ActBlock* y[T];
    KT_TOKENS y[t] = x[t] + 2 * c;
    two_groups<T>(head, scales, mins, y, total, [&](int j, I& u, I& v) {
      const I q = load_i(bits + 128 * j), w = take_line<T>(p + stride * j);
      u = band(select(low, w, rotate(q, to_four)), low_five);
      v = band(select(high, shr(w, 1), rotate(q, to_seven)), high_five);
    });
    scales = shr(scales, 16);
    mins = shr(mins, 16);
  }
}

#endif

#if defined(KT_HAS_GEMV)

// Byte b of every lane, signed, times 2^24.
KT_INLINE I top_byte(I w, int b) {
  return band(b == 3 ? w : shl(w, 24 - 8 * b), set_i((int32_t)0xFF000000u));
}

template <int T>
KT_INLINE void gemv_record(quant::Q6_K, const uint8_t* record, const ActBlock* const* x, F* total) {
  using Q = quant::Q6_K;
  const F d = mul(head_halves(record), set_f(0x1p-24f));  // for top_byte
  const I nibble = bytes_of(0x0F), even_pairs = bytes_of(0x33);
  const uint8_t* p = quant::r16_word<Q>(record, 0);
  const uint8_t* scales = quant::r16_word<Q>(record, 48);
#pragma GCC unroll 1
  for (int h = 0; h < 2; ++h) {
    const ActBlock* y[T];
    KT_TOKENS y[t] = x[t] + 4 * h;
    // Groups are in the order of values, so those of the first half wait for those of the second.
    F part[2][4][T];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      Acc a[4][T];
      KT_TOKENS {
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) a[v][t] = acc_from(-Q::kOffset * y[t][v].sum[half]);
      }
#pragma GCC unroll 1
      for (int j = 0; j < 4; ++j, p += 192) {
        const I low = take_line<T>(p), high = take_line<T>(p + 64), q = take_line<T>(p + 128);
        // Two bits in each nibble, so that a shift brings zeros beside them.
        const I even = band(q, even_pairs), odd = bxor(q, even);
        const I u[4] = {select(nibble, low, shl(even, 4)), select(nibble, high, shl(odd, 2)),
                        select(nibble, shr(low, 4), even),
                        select(nibble, shr(high, 4), shr(odd, 2))};
        KT_TOKENS {
#pragma GCC unroll 4
          for (int v = 0; v < 4; ++v) mac(a[v][t], u[v], y[t] + v, 16 * half + 4 * j);
        }
      }
      KT_TOKENS {
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v)
          part[half][v][t] = mul(to_float(acc_sum(a[v][t])), set_f(y[t][v].scale));
      }
    }
    const I s[2] = {load_i(scales + 128 * h), load_i(scales + 128 * h + 64)};
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) {
      const F scale = mul(d, to_float(top_byte(s[g / 4], g % 4)));
      KT_TOKENS total[t] = fma(part[g % 2][g / 2][t], scale, total[t]);
    }
  }
}

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
