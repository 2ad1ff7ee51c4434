// gemv_record of the formats with one scale per group and no more: blocks of 32 values, those with
// uneven levels (IQ4, 4-bit floats), and two-bit ternary digits.
#pragma once

#include "cpu/kernels/halves_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

#if defined(KT_ISA_AVX512)

// Formats of 32 values as 16 bytes of nibbles: low halves first, then high halves. step(w, u, v)
// turns a word into the bytes of its low and its high nibbles, for the words j = 0..3.
template <int T, class Step>
KT_INLINE void nibble_group(const uint8_t* words, int32_t start, const ActBlock* const* y, I* dot,
                            Step step) {
  Acc a[T];
  KT_TOKENS a[t] = acc_from(start * sum32(y[t]));
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    I u, v;
    step(j, take_line<T>(words + 64 * j), u, v);
    KT_TOKENS {
      mac(a[t], u, y[t], 4 * j);
      mac(a[t], v, y[t], 4 * j + 16);
    }
  }
  KT_TOKENS dot[t] = acc_sum(a[t]);
}

template <int T>
KT_INLINE void gemv_record(quant::Q4_0, const uint8_t* record, const ActBlock* const* x, F* total) {
  using Q = quant::Q4_0;
  I dot[T];
  const F d = head_halves(record);
  nibble_group<T>(quant::r16_word<Q>(record, 0), -Q::kOffset, x, dot, [](int, I w, I& u, I& v) {
    u = low_nibbles(w);
    v = high_nibbles(w);
  });
  KT_TOKENS total[t] = add_dot(total[t], dot[t], x[t], d);
}

template <int T>
KT_INLINE void gemv_record(quant::Q4_1, const uint8_t* record, const ActBlock* const* x, F* total) {
  using Q = quant::Q4_1;
  I dot[T];
  const I head = word<Q>(record, 0);
  const F d = half_lanes(head), m = half_lanes(shr(head, 16));
  nibble_group<T>(quant::r16_word<Q>(record, 1), 0, x, dot, [](int, I w, I& u, I& v) {
    u = low_nibbles(w);
    v = high_nibbles(w);
  });
  KT_TOKENS {
    total[t] = add_dot(total[t], dot[t], x[t], d);
    total[t] = add_min(total[t], x[t], m);
  }
}

template <int T>
KT_INLINE void gemv_record(quant::Q5_0, const uint8_t* record, const ActBlock* const* x, F* total) {
  using Q = quant::Q5_0;
  I dot[T];
  const F d = head_halves(record);
  const I bits = word<Q>(record, 0);
  nibble_group<T>(quant::r16_word<Q>(record, 1), -Q::kOffset, x, dot, [&](int j, I w, I& u, I& v) {
    u = bor(low_nibbles(w), fifth_bits(bits, j));
    v = bor(high_nibbles(w), fifth_bits(bits, j + 4));
  });
  KT_TOKENS total[t] = add_dot(total[t], dot[t], x[t], d);
}

template <int T>
KT_INLINE void gemv_record(quant::Q5_1, const uint8_t* record, const ActBlock* const* x, F* total) {
  using Q = quant::Q5_1;
  I dot[T];
  const I head = word<Q>(record, 0), bits = word<Q>(record, 1);
  const F d = half_lanes(head), m = half_lanes(shr(head, 16));
  nibble_group<T>(quant::r16_word<Q>(record, 2), 0, x, dot, [&](int j, I w, I& u, I& v) {
    u = bor(low_nibbles(w), fifth_bits(bits, j));
    v = bor(high_nibbles(w), fifth_bits(bits, j + 4));
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
  nibble_group<T>(quant::r16_word<Q>(record, 0), -Q::kOffset, x, dot, [](int, I w, I& u, I& v) {
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
    nibble_group<T>(p, -Q::kOffset, y, dot, [](int, I w, I& u, I& v) {
      u = lookup16(low_nibbles(w), quant::kIq4Levels);
      v = lookup16(high_nibbles(w), quant::kIq4Levels);
    });
    KT_TOKENS total[t] = add_dot(total[t], dot[t], y[t], scale);
  }
}

template <int T>
KT_INLINE void gemv_record(quant::TQ2_0, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::TQ2_0;
  const F d = head_halves(record);
  const float in_place[4] = {1.0f, 1.0f / 4, 1.0f / 16, 1.0f / 64};
  const I bits[4] = {bytes_of(0x03), bytes_of(0x0C), bytes_of(0x30), bytes_of(0xC0)};
  const uint8_t* p = quant::r16_word<Q>(record, 0);
#pragma GCC unroll 1
  for (int h = 0; h < 2; ++h, p += 512) {
    Acc a[4][T];
    const ActBlock* y[T];
    KT_TOKENS {
      y[t] = x[t] + 4 * h;
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) a[v][t] = acc_from(-(1 << 2 * v) * sum32(y[t] + v));
    }
#pragma GCC unroll 2
    for (int j = 0; j < 8; ++j) {
      const I w = take_line<T>(p + 64 * j);
      KT_TOKENS {
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) mac(a[v][t], band(w, bits[v]), y[t] + v, 4 * j);
      }
    }
    KT_TOKENS {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v)
        total[t] = add_dot(total[t], acc_sum(a[v][t]), y[t] + v, mul(d, set_f(in_place[v])));
    }
  }
}

// half_e8m0 of quant/mxfp4.h for sixteen bytes.
KT_INLINE F exponent_scales(const uint8_t* bytes) {
  const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)bytes));
  const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
  const __m512i tiny = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
  const __mmask16 is_tiny = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
  return {_mm512_castsi512_ps(_mm512_mask_blend_epi32(is_tiny, normal, tiny))};
}

template <int T>
KT_INLINE void gemv_record(quant::MXFP4, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::MXFP4;
  I dot[T];
  const F scale = exponent_scales(record);
  nibble_group<T>(quant::r16_word<Q>(record, 0), -Q::kOffset, x, dot, [](int, I w, I& u, I& v) {
    u = lookup16(low_nibbles(w), quant::kFp4Levels);
    v = lookup16(high_nibbles(w), quant::kFp4Levels);
  });
  KT_TOKENS total[t] = add_dot(total[t], dot[t], x[t], scale);
}

// half_ue4m3 of quant/nvfp4.h for the low byte of each lane.
KT_INLINE F ue4m3_scales(I byte) {
  const __m512i e = _mm512_and_si512(byte.v, _mm512_set1_epi32(0x7F));
  const __mmask16 is_tiny = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(8));
  const __mmask16 is_nan = _mm512_cmpeq_epi32_mask(
      _mm512_and_si512(byte.v, _mm512_set1_epi32(0xFF)), _mm512_set1_epi32(0x7F));
  // With exponent 1 instead of 0 the mantissa has a one in front, 2^-7, that goes off again.
  const __m512i bias = _mm512_mask_blend_epi32(is_tiny, _mm512_set1_epi32(119 << 23),
                                               _mm512_set1_epi32(120 << 23));
  const __m512 value = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_slli_epi32(e, 20), bias));
  const __m512 exact = _mm512_mask_sub_ps(value, is_tiny, value, _mm512_set1_ps(0.0078125f));
  return {_mm512_maskz_mov_ps((__mmask16)~is_nan, exact)};
}

template <int T>
KT_INLINE void gemv_record(quant::NVFP4, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::NVFP4;
  const I scales = word<Q>(record, 0);
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    Acc a[T];
    KT_TOKENS a[t] = acc_from(-Q::kOffset * x[t][g / 2].sum[g % 2]);
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
    KT_TOKENS total[t] = add_dot(total[t], acc_sum(a[t]), x[t] + g / 2, scale);
  }
}

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
