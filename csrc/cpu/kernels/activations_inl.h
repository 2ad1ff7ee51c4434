// Rounding of activations to integers, and the dot product of 32 of them with weight bytes.
//
// Both roundings describe 32 consecutive values x as  scale * q  with integers q:
//   exact  scale = max|x| / 32512, q = 256 * hi + lo, both signed bytes (the last bit of the top
//          step is given up so that hi never leaves -127..127)
//   digit  q = digit + zero, digit in -128..127, zero a multiple of 16. scale is one float per 256
//          values times 2^-e, e in 0..6: the coarse steps are shifts and adds beside the dot product.
// A weight byte is u in 0..255 and weights are scale_w * (u - offset) + min_w, so a group of 16 or
// 32 needs sum(u * q) from the dot product and sum(q), stored per 16 values, for offset and minimum.
//
// The integers are the same on every ISA; only their storage differs (hi and lo bytes for the
// byte dot product of VNNI, int16 pairs for the others), so results differ by float order alone.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/kernels/simd_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

struct ActBlock {
  float scale;
  int32_t zero;    // digit: added to every digit; exact: 0
  int32_t sum[2];  // sum of q over values 0..15 and 16..31, zero included
#if defined(KT_ISA_AVX512)
  int8_t hi[32];  // digit: the digit itself
  int8_t lo[32];
#else
  int16_t q[32];  // per four values: q0 q2 q1 q3, the order weight bytes split into 16-bit pairs
#endif
};
static_assert(sizeof(ActBlock) == kActBlockBytes);

KT_INLINE void store_q(ActBlock& block, const int32_t* q, int32_t zero, bool exact) {
  block.zero = zero;
  for (int half = 0; half < 2; ++half) {
    int32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += q[half * 16 + i];
    block.sum[half] = sum;
  }
#if defined(KT_ISA_AVX512)
  for (int i = 0; i < 32; ++i) {
    const int32_t hi = exact ? (q[i] + 128) >> 8 : q[i] - zero;
    block.hi[i] = (int8_t)hi;
    block.lo[i] = (int8_t)(exact ? q[i] - hi * 256 : 0);
  }
#else
  (void)exact;
  for (int i = 0; i < 32; i += 4) {
    block.q[i] = (int16_t)q[i];
    block.q[i + 1] = (int16_t)q[i + 2];
    block.q[i + 2] = (int16_t)q[i + 1];
    block.q[i + 3] = (int16_t)q[i + 3];
  }
#endif
}

// 32 values, zero beyond the end of the row.
struct Chunk {
  F a, b;
};

KT_INLINE Chunk load_chunk(const float* x, int64_t left) {
  if (left >= 32) return {load_f(x), load_f(x + 16)};
  if (left >= 16) return {load_f(x), load_f_tail(x + 16, left - 16)};
  return {load_f_tail(x, left), zero_f()};
}

KT_INLINE void quantize_chunk(const Chunk& x, float scale, int32_t zero, bool exact, ActBlock& out) {
  int32_t q[32];
  // Below kTiniest the reciprocal would overflow; such rows are zero for every purpose.
  constexpr float kTiniest = 1e-30f;
  if (!(scale >= kTiniest)) scale = 0.0f, zero = 0;
  const F inverse = set_f(scale > 0.0f ? 1.0f / scale : 0.0f);
  store_i(q, to_int(mul(x.a, inverse)));
  store_i(q + 16, to_int(mul(x.b, inverse)));
  const int32_t low = exact ? -32512 : zero - 128, high = exact ? 32512 : zero + 127;
  for (int i = 0; i < 32; ++i) q[i] = q[i] < low ? low : q[i] > high ? high : q[i];
  out.scale = scale;
  store_q(out, q, zero, exact);
}

KT_INLINE void quantize_exact_row(const float* x, int64_t k, uint8_t* row) {
  ActBlock* out = (ActBlock*)row;
  for (int64_t i = 0; i < k; i += 32, ++out) {
    const Chunk chunk = load_chunk(x + i, k - i);
    const float top = reduce_max(max(max(chunk.a, neg(chunk.a)), max(chunk.b, neg(chunk.b))));
    quantize_chunk(chunk, top * (1.0f / 32512.0f), 0, true, *out);
  }
}

// The zero point that centres [low, high] at this scale, as a multiple of 16.
KT_INLINE int32_t coarse_zero(float low, float high, float scale) {
  const float centre = (low + high) * 0.5f / scale;  // digits are centred on -0.5
  return 16 * (int32_t)__builtin_floorf((centre + 0.5f) * (1.0f / 16.0f) + 0.5f);
}

KT_INLINE bool fits(float low, float high, float scale) {
  const float zero = (float)coarse_zero(low, high, scale);
  return high / scale - zero <= 127.5f && low / scale - zero >= -128.5f;
}

// The smallest of a few scales at which [low, high] fits around a multiple of 16.
KT_INLINE float needed_scale(float low, float high) {
  const float range = high - low;
  for (int steps = 255; steps > 239; steps -= 4) {
    const float scale = range / (float)steps;
    if (scale > 0.0f && fits(low, high, scale)) return scale;
  }
  return range * (1.0f / 239.0f);  // always fits: 8 of 16 lost on either side
}

KT_INLINE void quantize_digit_row(const float* x, int64_t k, uint8_t* row) {
  ActBlock* out = (ActBlock*)row;
  for (int64_t start = 0; start < k; start += 256) {
    const int64_t end = start + 256 < k ? start + 256 : k;
    float low[8], high[8], base = 0.0f;
    int blocks = 0;
    for (int64_t i = start; i < end; i += 32, ++blocks) {
      const Chunk chunk = load_chunk(x + i, end - i);
      high[blocks] = reduce_max(max(max(chunk.a, chunk.b), zero_f()));
      low[blocks] = -reduce_max(max(max(neg(chunk.a), neg(chunk.b)), zero_f()));
      const float needed = needed_scale(low[blocks], high[blocks]);
      base = needed > base ? needed : base;
    }
    for (int b = 0; b < blocks; ++b, ++out) {
      float scale = base;
      int32_t zero = 0;
      if (base > 0.0f) {
        for (int e = 0; e < 6 && fits(low[b], high[b], scale * 0.5f); ++e) scale *= 0.5f;
        zero = coarse_zero(low[b], high[b], scale);
      }
      const int64_t i = start + b * 32;
      quantize_chunk(load_chunk(x + i, end - i), scale, zero, false, *out);
    }
  }
}

// One weight vector: four consecutive values of 16 rows, `bytes[row * 4 + j]`.
#if defined(KT_ISA_AVX512)

struct Words {
  __m512i v;
};

KT_INLINE Words load_words(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }

KT_INLINE __m512i broadcast4(const int8_t* p) {
  int32_t word;
  memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}

// sum over j of u[row][j] * q[j] for `kVectors` words from value `first` on, as int32 lanes.
// `row_sums` holds sum of u over the same values; only digits with a zero point need it.
template <int kVectors, bool kExactRow>
KT_INLINE I dot_group(const Words* words, const ActBlock& x, int first, I row_sums) {
  __m512i even = _mm512_setzero_si512(), odd = even, even_lo = even, odd_lo = even;
  for (int j = 0; j < kVectors; j += 2) {
    even = _mm512_dpbusd_epi32(even, words[j].v, broadcast4(x.hi + first + j * 4));
    odd = _mm512_dpbusd_epi32(odd, words[j + 1].v, broadcast4(x.hi + first + j * 4 + 4));
    if constexpr (kExactRow) {
      even_lo = _mm512_dpbusd_epi32(even_lo, words[j].v, broadcast4(x.lo + first + j * 4));
      odd_lo = _mm512_dpbusd_epi32(odd_lo, words[j + 1].v, broadcast4(x.lo + first + j * 4 + 4));
    }
  }
  const __m512i hi = _mm512_add_epi32(even, odd);
  if constexpr (kExactRow)
    return {_mm512_add_epi32(_mm512_slli_epi32(hi, 8), _mm512_add_epi32(even_lo, odd_lo))};
  // zero is a multiple of 16 and small, but one multiply is simplest here.
  return {_mm512_add_epi32(hi, _mm512_mullo_epi32(row_sums.v, _mm512_set1_epi32(x.zero)))};
}

template <int kVectors>
KT_INLINE I sum_words(const Words* words) {
  __m512i sum = _mm512_setzero_si512();
  for (int j = 0; j < kVectors; ++j)
    sum = _mm512_dpbusd_epi32(sum, words[j].v, _mm512_set1_epi8(1));
  return {sum};
}

#elif defined(KT_ISA_AVX2)

// Bytes 0 and 2, and bytes 1 and 3, of each row as 16-bit pairs: vpmaddwd then sums exactly.
struct Words {
  __m256i even[2], odd[2];
};

KT_INLINE Words load_words(const uint8_t* p) {
  const __m256i mask = _mm256_set1_epi32(0x00FF00FF);
  Words words;
  for (int h = 0; h < 2; ++h) {
    const __m256i v = _mm256_loadu_si256((const __m256i*)(p + 32 * h));
    words.even[h] = _mm256_and_si256(v, mask);
    words.odd[h] = _mm256_and_si256(_mm256_srli_epi32(v, 8), mask);
  }
  return words;
}

KT_INLINE __m256i broadcast_pair(const int16_t* p) {
  int32_t word;
  memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}

template <int kVectors, bool>
KT_INLINE I dot_group(const Words* words, const ActBlock& x, int first, I) {
  I sum = set_i(0);
  for (int j = 0; j < kVectors; ++j) {
    const __m256i even = broadcast_pair(x.q + first + j * 4);
    const __m256i odd = broadcast_pair(x.q + first + j * 4 + 2);
    sum.a = _mm256_add_epi32(sum.a, _mm256_madd_epi16(words[j].even[0], even));
    sum.b = _mm256_add_epi32(sum.b, _mm256_madd_epi16(words[j].even[1], even));
    sum.a = _mm256_add_epi32(sum.a, _mm256_madd_epi16(words[j].odd[0], odd));
    sum.b = _mm256_add_epi32(sum.b, _mm256_madd_epi16(words[j].odd[1], odd));
  }
  return sum;
}

template <int>
KT_INLINE I sum_words(const Words*) {  // zero points are folded into q here
  return set_i(0);
}

#else

struct Words {
  const uint8_t* bytes;
};

KT_INLINE Words load_words(const uint8_t* p) { return {p}; }

template <int kVectors, bool>
KT_INLINE I dot_group(const Words* words, const ActBlock& x, int first, I) {
  I sum = set_i(0);
  for (int j = 0; j < kVectors; ++j) {
    const int16_t* q = x.q + first + j * 4;
    const int32_t q0 = q[0], q2 = q[1], q1 = q[2], q3 = q[3];
    for (int row = 0; row < 16; ++row) {
      const uint8_t* u = words[j].bytes + row * 4;
      sum.v[row] += u[0] * q0 + u[1] * q1 + u[2] * q2 + u[3] * q3;
    }
  }
  return sum;
}

template <int>
KT_INLINE I sum_words(const Words*) {
  return set_i(0);
}

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
