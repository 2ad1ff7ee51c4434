// gemv_record of the formats with one scale per group and no more: blocks of 32 values and those
// with uneven levels (IQ4, 4-bit floats).
#pragma once

#include "cpu/kernels/byte_halves_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

#if defined(KT_HAS_GEMV)

// Formats of 32 values as 16 bytes of nibbles: low halves first, then high halves. step(w, u, v)
// turns a word into the bytes of its low and its high nibbles, for the words j = 0..3.
template <class Q, int T, class Step>
KT_INLINE void nibble_group(const uint8_t* words, const BlockOf<Q>* const* y, I* dot, Step step) {
  decltype(group_start<Q>(y[0], 2)) a[T];
  KT_TOKENS a[t] = group_start<Q>(y[t], 2);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    I u, v;
    step(j, take_line<T>(words + 64 * j), u, v);
    KT_TOKENS {
      mac(a[t], u, y[t], 4 * j);
      mac(a[t], v, y[t], 4 * j + 16);
    }
  }
  KT_TOKENS dot[t] = group_dot<Q>(a[t], y[t]);
}

template <int T>
KT_INLINE void gemv_record(quant::Q4_0, const uint8_t* record, const BlockOf<quant::Q4_0>* const* x,
                           F* total) {
  using Q = quant::Q4_0;
  I dot[T];
  const F d = head_halves(record);
  nibble_group<Q, T>(quant::r16_word<Q>(record, 0), x, dot, [](int, I w, I& u, I& v) {
    u = low_nibbles(w);
    v = high_nibbles(w);
  });
  KT_TOKENS total[t] = add_dot(total[t], dot[t], x[t], d);
}

template <int T>
KT_INLINE void gemv_record(quant::Q4_1, const uint8_t* record, const BlockOf<quant::Q4_1>* const* x,
                           F* total) {
  using Q = quant::Q4_1;
  I dot[T];
  const I head = word<Q>(record, 0);
  const F d = half_lanes(head), m = half_lanes(shr(head, 16));
  nibble_group<Q, T>(quant::r16_word<Q>(record, 1), x, dot, [](int, I w, I& u, I& v) {
    u = low_nibbles(w);
    v = high_nibbles(w);
  });
  KT_TOKENS {
    total[t] = add_dot(total[t], dot[t], x[t], d);
    total[t] = add_min(total[t], x[t], m);
  }
}

// nibbles + 16 where bits 4 j .. 4 j + 3 of a lane are set, one a byte.
KT_INLINE I with_fifth_bits(I nibbles, I bits, int j) {
  // Each byte gets the bits' byte of its lane and looks at one of them.
  alignas(16) static constexpr uint8_t kLanes[16] = {0, 0, 0, 0, 4,  4,  4,  4,
                                                     8, 8, 8, 8, 12, 12, 12, 12};
  const I control = add_bytes(load_lanes(kLanes), bytes_of(j / 2));
#if defined(KT_ISA_AVX2)
  alignas(16) static constexpr uint8_t kFifth[16] = {0, 16, 16, 0, 16, 0, 0, 0, 16};
  const I bit = band(shuffle(j % 2 == 0 ? bits : shr(bits, 4), control), set_i(0x08040201));
  return bor(nibbles, lookup16(bit, kFifth));
#else
  return add_where(nibbles, shuffle(bits, control), set_i((int32_t)(0x08040201u << (j % 2 * 4))),
                   bytes_of(16));
#endif
}

template <int T>
KT_INLINE void gemv_record(quant::Q5_0, const uint8_t* record, const BlockOf<quant::Q5_0>* const* x,
                           F* total) {
  using Q = quant::Q5_0;
  I dot[T];
  const F d = head_halves(record);
  const I bits = word<Q>(record, 0);
  nibble_group<Q, T>(quant::r16_word<Q>(record, 1), x, dot, [&](int j, I w, I& u, I& v) {
    u = with_fifth_bits(low_nibbles(w), bits, j);
    v = with_fifth_bits(high_nibbles(w), bits, j + 4);
  });
  KT_TOKENS total[t] = add_dot(total[t], dot[t], x[t], d);
}

template <int T>
KT_INLINE void gemv_record(quant::Q5_1, const uint8_t* record, const BlockOf<quant::Q5_1>* const* x,
                           F* total) {
  using Q = quant::Q5_1;
  I dot[T];
  const I head = word<Q>(record, 0), bits = word<Q>(record, 1);
  const F d = half_lanes(head), m = half_lanes(shr(head, 16));
  nibble_group<Q, T>(quant::r16_word<Q>(record, 2), x, dot, [&](int j, I w, I& u, I& v) {
    u = with_fifth_bits(low_nibbles(w), bits, j);
    v = with_fifth_bits(high_nibbles(w), bits, j + 4);
  });
  KT_TOKENS {
    total[t] = add_dot(total[t], dot[t], x[t], d);
    total[t] = add_min(total[t], x[t], m);
  }
}

template <int T>
KT_INLINE void gemv_record(quant::Q8_0, const uint8_t* record, const ActBlock* const* x, F* total) {
  using Q = quant::Q8_0;
  Acc a[T];
  KT_TOKENS a[t] = acc_from(-Q::kOffset * sum32(x[t]));
  const I flip = bytes_of(0x80);  // adding 128 to a signed byte flips its top bit
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    const I u = bxor(take_line<T>(quant::r16_word<Q>(record, j)), flip);
    KT_TOKENS mac(a[t], u, x[t], 4 * j);
  }
  const F d = head_halves(record);
  KT_TOKENS total[t] = add_dot(total[t], acc_sum(a[t]), x[t], d);
}

template <int T>
KT_INLINE void gemv_record(quant::IQ4_NL, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ4_NL;
  I dot[T];
  const F d = head_halves(record);
  nibble_group<Q, T>(quant::r16_word<Q>(record, 0), x, dot, [](int, I w, I& u, I& v) {
    u = lookup16(low_nibbles(w), quant::kIq4Levels);
    v = lookup16(high_nibbles(w), quant::kIq4Levels);
  });
  KT_TOKENS total[t] = add_dot(total[t], dot[t], x[t], d);
}

template <int T>
KT_INLINE void gemv_record(quant::IQ4_XS, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ4_XS;
  const I head = word<Q>(record, 0);
  I lows = word<Q>(record, 1), highs = shr(head, 16);
  const F d = half_lanes(head);
  const uint8_t* p = quant::r16_word<Q>(record, 2);
#pragma GCC unroll 1
  for (int g = 0; g < 8; ++g, p += 256) {
    const I s = bor(band(lows, set_i(15)), shl(band(highs, set_i(3)), 4));
    const F scale = mul(d, to_float(add(s, set_i(-32))));
    lows = shr(lows, 4);
    highs = shr(highs, 2);
    const ActBlock* y[T];
    KT_TOKENS y[t] = x[t] + g;
    I dot[T];
    nibble_group<Q, T>(p, y, dot, [](int, I w, I& u, I& v) {
      u = lookup16(low_nibbles(w), quant::kIq4Levels);
      v = lookup16(high_nibbles(w), quant::kIq4Levels);
    });
    KT_TOKENS total[t] = add_dot(total[t], dot[t], y[t], scale);
  }
}

// half_e8m0 of quant/mxfp4.h for sixteen bytes e: the bits (e - 1) << 23, and 1 << 21 + e for the
// two smallest, where they are more.
KT_INLINE F exponent_scales(const uint8_t* bytes) {
  const I e = load_bytes(bytes), one = set_i(1);
  return float_of_bits(max(shl(add(e, set_i(-1)), 23), shl(add(e, one), 21)));
}

template <int T>
KT_INLINE void gemv_record(quant::MXFP4, const uint8_t* record,
                           const BlockOf<quant::MXFP4>* const* x, F* total) {
  using Q = quant::MXFP4;
  I dot[T];
  const F scale = exponent_scales(record);
  nibble_group<Q, T>(quant::r16_word<Q>(record, 0), x, dot, [](int, I w, I& u, I& v) {
    u = lookup16(low_nibbles(w), quant::kFp4Levels);
    v = lookup16(high_nibbles(w), quant::kFp4Levels);
  });
  KT_TOKENS total[t] = add_dot(total[t], dot[t], x[t], scale);
}

// half_ue4m3 of quant/nvfp4.h for the low byte e of each lane: exponent and mantissa where a float
// has them, with the difference of the biases. With exponent 0 the float's hidden one does not
// belong there; with exponent 1 instead it is 2^-7, which goes off again. The right one of the two
// is less.
KT_INLINE F ue4m3_scales(I byte) {
  const I e = shl(band(without(band(byte, set_i(0xFF)), 0x7F), set_i(0x7F)), 20);
  return min(float_of_bits(add(e, set_i(119 << 23))),
             sub(float_of_bits(add(e, set_i(120 << 23))), set_f(0x1p-7f)));
}

template <int T>
KT_INLINE void gemv_record(quant::NVFP4, const uint8_t* record,
                           const BlockOf<quant::NVFP4>* const* x, F* total) {
  using Q = quant::NVFP4;
  const I scales = word<Q>(record, 0);
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    decltype(group_start<Q>(x[0], 0)) a[T];
    KT_TOKENS a[t] = group_start<Q>(x[t] + g / 2, g % 2);
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const I w = take_line<T>(quant::r16_word<Q>(record, 1 + 2 * g + j));
      const I u = lookup16(low_nibbles(w), quant::kFp4Levels);
      const I v = lookup16(high_nibbles(w), quant::kFp4Levels);
      KT_TOKENS {
        mac(a[t], u, x[t] + g / 2, g % 2 * 16 + 4 * j);
        mac(a[t], v, x[t] + g / 2, g % 2 * 16 + 8 + 4 * j);
      }
    }
    const F scale = ue4m3_scales(shr(scales, 8 * g));
    KT_TOKENS total[t] = add_dot(total[t], group_dot<Q>(a[t], x[t]), x[t] + g / 2, scale);
  }
}

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
