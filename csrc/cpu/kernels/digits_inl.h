// One int8 digit per activation: the rounding of most prompt tokens (Rounding::kDigit).
//
// 256 values x at a time. The one of largest magnitude (the first of equals) is kept as a float and
// left out of the digits: it alone would set the step of all the others. Of the rest
//     x = unit * 2^shift * q,   q = digit + zero
// with a digit in -128..127, zero a multiple of 16 and shift in 0..6 per 32 values, and one float
// unit per 256. Steps of powers of two and coarse zeros cost shifts and adds beside the dot
// products instead of multiplications. A row of k values is ceil(k / 256) blocks.
//
// The integers are the same on every ISA; their storage differs. Vector instruction sets multiply
// unsigned bytes d = digit + 128 and take 16 n sum(w) off, n = 8 - zero / 16 in 0..15; plain C++
// multiplies q.
//
// Behind a row's blocks stand its zero points once more, a byte n per 32 values, where a product
// with many rows looks for those it will meet.
//
// Order of a row's float sums, whatever multiplies it: per 256 columns, groups g of kGroup values
// in order of k,
//     part = fma(float(dot << shift), scale, part)     dot = sum (u - kOffset) q, as int32
//     part = fma(sum x / unit, min, part)              only formats with minima; outlier included
// from part = 0, and then
//     total = fma(part, unit, total),  total = fma(scale * (u - kOffset), outlier, total).
// Bounds: |u - kOffset| <= 128, |q| < 256, 32 values: |dot << shift| < 2^26.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/kernels/simd_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

constexpr int kDigitValues = 256;
constexpr int kMaxShift = 6;

struct DigitBlock {
  int32_t shift[8];  // per 32 values
  float sum[8];      // per 32 values: sum(x) / unit
  float half_sum[16];  // the same per 16
  float unit;
  float outlier;
  int32_t outlier_at;  // its column, 0..255
  int32_t unused;
#if defined(KT_ISA_AVX512) || defined(KT_ISA_AVX2)
  uint16_t zero_at[8];  // per 32 values: 64 n, where a table of 64-byte rows has n's
  uint8_t digit[256];   // plus 128
#else
  int16_t q[256];  // per four values: q0 q2 q1 q3, the order weight bytes split into 16-bit pairs
#endif
};
static_assert(sizeof(DigitBlock) + 32 <= kDigitBlockBytes);  // zero points, read 32 at a time

KT_INLINE uint8_t* digit_zeros(uint8_t* row, int64_t k) {
  return row + (k + kDigitValues - 1) / kDigitValues * (int64_t)sizeof(DigitBlock);
}
KT_INLINE const uint8_t* digit_zeros(const uint8_t* row, int64_t k) {
  return digit_zeros((uint8_t*)row, k);
}

KT_INLINE float magnitude_of(float x) { return x < 0.0f ? -x : x; }

// The ranges of eight blocks of 32, in lanes 0 to 7; low <= 0 <= high. The other lanes are zero.
struct Ranges {
  F low, high;
};
KT_INLINE Ranges scaled(const Ranges& x, F factor) {
  return {mul(x.low, factor), mul(x.high, factor)};
}

// The zero point next to the middle of a range given in steps; digits are centred on -0.5.
KT_INLINE F coarse_zero(const Ranges& steps) {
  const F centre = fma(add(steps.low, steps.high), set_f(0.5f), set_f(0.5f));
  return mul(round_f(mul(centre, set_f(1.0f / 16.0f))), set_f(16.0f));
}

// Where a range given in steps has no value beyond its digits by more than half a step, yes.
KT_INLINE F select_fitting(const Ranges& steps, F yes, F no) {
  const F zero = coarse_zero(steps);
  const F above = sub(sub(steps.high, zero), set_f(127.5f));
  const F below = sub(sub(zero, steps.low), set_f(128.5f));
  return select_le(max(above, below), zero_f(), yes, no);
}

// Per block the smallest of a few scales at which its range fits around a multiple of 16; the
// largest of them.
KT_INLINE float needed_scale(const Ranges& x) {
  const F range = sub(x.high, x.low);
  F most = set_f(239.0f);  // always fits: 8 of 16 lost on either side
  for (int steps = 243; steps <= 255; steps += 4) {
    const F count = set_f((float)steps);
    most = select_fitting(scaled(x, div(count, max(range, set_f(1e-30f)))), count, most);
  }
  return reduce_max(div(range, most));
}

// How often a block's scale can be halved from `base` while its range still fits. The six trials do
// not wait for one another.
KT_INLINE F count_halvings(const Ranges& at_base) {
  F going = set_f(1.0f), count = zero_f();
  for (int e = 1; e <= kMaxShift; ++e) {
    const Ranges steps = scaled(at_base, set_f((float)(1 << e)));
    going = mul(going, select_fitting(steps, set_f(1.0f), zero_f()));
    count = add(count, going);
  }
  return count;
}

KT_INLINE F magnitude(F x) { return max(x, neg(x)); }

// x: 256 values; the outlier is replaced by zero.
KT_INLINE void take_outlier(float* x, DigitBlock& out) {
  F top = magnitude(load_f(x));
  for (int i = 16; i < kDigitValues; i += 16) top = max(top, magnitude(load_f(x + i)));
  const float largest = reduce_max(top);
  int32_t at = 0;
  while (at < kDigitValues - 16 && reduce_max(magnitude(load_f(x + at))) != largest) at += 16;
  const int32_t end = at + 15;
  while (at < end && magnitude_of(x[at]) != largest) ++at;
  out.outlier = x[at];
  out.outlier_at = at;
  out.unused = 0;
  x[at] = 0.0f;
}

// 32 values as digits at `scale` around `zero`, and their sums.
KT_INLINE void store_digits(const float* x, float inverse, int32_t zero, int32_t block,
                            DigitBlock& out, int32_t* sums) {
  const int32_t low = zero - 128, high = zero + 127;
#if defined(KT_ISA_AVX512)
  out.zero_at[block] = (uint16_t)(64 * (8 - zero / 16));
  for (int half = 0; half < 2; ++half) {
    const __m512 steps = _mm512_mul_ps(_mm512_loadu_ps(x + 16 * half), _mm512_set1_ps(inverse));
    __m512i q = _mm512_max_epi32(_mm512_cvtps_epi32(steps), _mm512_set1_epi32(low));
    q = _mm512_sub_epi32(_mm512_min_epi32(q, _mm512_set1_epi32(high)), _mm512_set1_epi32(low));
    const __m128i bytes = _mm512_cvtepi32_epi8(q);
    _mm_storeu_si128((__m128i*)(out.digit + 32 * block + 16 * half), bytes);
    const __m128i eights = _mm_sad_epu8(bytes, _mm_setzero_si128());
    const __m128i both = _mm_add_epi64(eights, _mm_unpackhi_epi64(eights, eights));
    sums[half] = _mm_cvtsi128_si32(both) + 16 * low;
  }
#elif defined(KT_ISA_AVX2)
  out.zero_at[block] = (uint16_t)(64 * (8 - zero / 16));
  const __m256i least = _mm256_set1_epi32(low), range = _mm256_set1_epi32(255);
  for (int half = 0; half < 2; ++half) {
    const I q = to_int(mul(load_f(x + 16 * half), set_f(inverse)));
    const __m256i a = _mm256_sub_epi32(_mm256_max_epi32(q.a, least), least);
    const __m256i b = _mm256_sub_epi32(_mm256_max_epi32(q.b, least), least);
    const __m256i words =  // lanes of 128 bits: a b a b
        _mm256_packs_epi32(_mm256_min_epi32(a, range), _mm256_min_epi32(b, range));
    const __m256i ordered = _mm256_permute4x64_epi64(words, 0xD8);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(ordered),
                                           _mm256_extracti128_si256(ordered, 1));
    _mm_storeu_si128((__m128i*)(out.digit + 32 * block + 16 * half), bytes);
    const __m128i eights = _mm_sad_epu8(bytes, _mm_setzero_si128());
    const __m128i both = _mm_add_epi64(eights, _mm_unpackhi_epi64(eights, eights));
    sums[half] = _mm_cvtsi128_si32(both) + 16 * low;
  }
  (void)high;
#else
  int32_t q[32];
  store_i(q, to_int(mul(load_f(x), set_f(inverse))));
  store_i(q + 16, to_int(mul(load_f(x + 16), set_f(inverse))));
  for (int i = 0; i < 32; ++i) q[i] = q[i] < low ? low : q[i] > high ? high : q[i];
  sums[0] = sums[1] = 0;
  for (int i = 0; i < 16; ++i) sums[0] += q[i];
  for (int i = 16; i < 32; ++i) sums[1] += q[i];
  int16_t* to = out.q + block * 32;
  for (int i = 0; i < 32; i += 4) {
    to[i] = (int16_t)q[i];
    to[i + 1] = (int16_t)q[i + 2];
    to[i + 2] = (int16_t)q[i + 1];
    to[i + 3] = (int16_t)q[i + 3];
  }
#endif
}

KT_INLINE void quantize_digit_block(float* x, DigitBlock& out, uint8_t* zeros) {
  // Below kTiniest the reciprocal would overflow; such values are zero for every purpose.
  constexpr float kTiniest = 1e-30f;
  take_outlier(x, out);
  float low[16] = {0}, high[16] = {0};
  for (int b = 0; b < 8; ++b) {
    const F first = load_f(x + 32 * b), second = load_f(x + 32 * b + 16);
    high[b] = reduce_max(max(max(first, second), zero_f()));
    low[b] = -reduce_max(max(neg(min(first, second)), zero_f()));
  }
  const Ranges ranges = {load_f(low), load_f(high)};
  float base = needed_scale(ranges);
  // Digits that vanish beside the outlier vanish, so that it can be counted in their unit.
  if (!(base >= kTiniest && base >= magnitude_of(out.outlier) * kTiniest)) base = 0.0f;
  const float inverse = base > 0.0f ? 1.0f / base : 0.0f;
  const Ranges at_base = scaled(ranges, set_f(inverse));
  int32_t halvings[16], zero[16], sums[16];
  float factor[16];
  store_i(halvings, to_int(count_halvings(at_base)));
  for (int b = 0; b < 16; ++b) factor[b] = (float)(1 << halvings[b]);
  store_i(zero, to_int(coarse_zero(scaled(at_base, load_f(factor)))));
  for (int b = 0; b < 8; ++b) out.shift[b] = kMaxShift - halvings[b];
  for (int b = 0; b < 8; ++b) zeros[b] = (uint8_t)(8 - zero[b] / 16);
  for (int b = 0; b < 8; ++b)
    store_digits(x + 32 * b, inverse * factor[b], zero[b], b, out, sums + 2 * b);
  out.unit = base > 0.0f ? base * (1.0f / (1 << kMaxShift)) : magnitude_of(out.outlier);
  for (int b = 0; b < 8; ++b) {
    out.sum[b] = (float)((sums[2 * b] + sums[2 * b + 1]) * (1 << out.shift[b]));
    out.half_sum[2 * b] = (float)(sums[2 * b] * (1 << out.shift[b]));
    out.half_sum[2 * b + 1] = (float)(sums[2 * b + 1] * (1 << out.shift[b]));
  }
  const float in_units = out.unit > 0.0f ? out.outlier / out.unit : 0.0f;
  out.sum[out.outlier_at / 32] += in_units;
  out.half_sum[out.outlier_at / 16] += in_units;
}

// Columns [begin, end) of a row of k.
KT_INLINE void quantize_digit_row(const float* x, int64_t begin, int64_t end, int64_t k,
                                  uint8_t* row) {
  DigitBlock* out = (DigitBlock*)row + begin / kDigitValues;
  uint8_t* zeros = digit_zeros(row, k) + begin / 32;
  alignas(64) float values[kDigitValues];
  for (; begin < end; begin += kDigitValues, x += kDigitValues, ++out, zeros += 8) {
    const int64_t count = end - begin < kDigitValues ? end - begin : kDigitValues;
    memcpy(values, x, (size_t)count * sizeof(float));
    memset(values + count, 0, (size_t)(kDigitValues - count) * sizeof(float));
    quantize_digit_block(values, *out, zeros);
  }
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
