// The transposed product y += W^T x, in which a row of W is one of the products' inner values.
//
// In floats (the reference, and sets without kernels of bytes): a column's sixteen rows are lanes.
// In halves: x is multiplied with the rows' scales first and then rounded as activations are
// (activations_inl.h), sixteen rows of a group of columns at a time. So groups need no scale of
// their own, and four rows times four columns are a step of the dot product of bytes, once the
// bytes of a word vector have changed places.
#pragma once

#include "cpu/kernels/activations_inl.h"
#include "cpu/kernels/float_tile_inl.h"
#include "cpu/kernels/slab_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

// What the rows of a group meet: x, and a zero in lanes outside the rows asked for.
KT_INLINE F lanes_of(const TransposedTask& task, int64_t group) {
  alignas(64) float lanes[16];
  for (int i = 0; i < 16; ++i) {
    const int64_t row = group * 16 + i;
    lanes[i] = row >= task.row_begin && row < task.row_end ? task.x[row - task.row_begin] : 0.0f;
  }
  return load_f(lanes);
}

// Per column the sixteen rows' products stay apart until the last row group: adding up lanes costs
// as much as multiplying several groups.
template <class Q>
static void transposed(const TransposedTask& task) {
  constexpr int kChunk = kFloatChunk<Q>, kPanel = 256;  // columns; sums of a panel fit the L1
  static_assert(kPanel % kChunk == 0);
  alignas(64) float weights[kChunk][16], sums[kPanel][16];
  for (int64_t panel = 0; panel < task.k; panel += kPanel) {
    const int columns = task.k - panel < kPanel ? (int)(task.k - panel) : kPanel;
    memset(sums, 0, sizeof sums);
    for (int64_t group = task.row_begin / 16; group * 16 < task.row_end; ++group) {
      const F x = lanes_of(task, group);
      for (int k = 0; k < columns; k += kChunk) {
        const int width = columns - k < kChunk ? columns - k : kChunk;
        unpack_floats<Q>(record_at<Q>(task, group, (panel + k) / Q::kValues), width, weights);
        for (int i = 0; i < width; ++i)
          store_f(sums[k + i], fma(load_f(weights[i]), x, load_f(sums[k + i])));
      }
    }
    for (int i = 0; i < columns; ++i) task.y[panel + i] += reduce_add(load_f(sums[i]));
  }
}

#if defined(KT_ISA_AVX512)

// Sixteen values as scale * (256 hi + lo), four of them in every word of their quarter, with what
// takes 128 times their sum off a dot product with bytes that are 128 too large.
struct QuarterHalves {
  __m512i hi, lo, start_hi, start_lo;
  F scale;
};

KT_INLINE QuarterHalves quarter_halves(F x) {
  const HalfSteps steps = half_steps(reduce_max(max(x, neg(x))));
  const I q = round_to_halves(x, steps);
  const __m512i quarters = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  const auto spread = [&](__m128i bytes) {
    return _mm512_permutexvar_epi32(quarters, _mm512_castsi128_si512(bytes));
  };
  const auto start = [](__m512i z) {
    const __m512i zero = _mm512_setzero_si512();
    const __m512i more = _mm512_dpbusd_epi32(zero, _mm512_set1_epi8((char)0x80), z);
    return _mm512_sub_epi32(zero, more);
  };
  QuarterHalves out;
  out.hi = spread(high_bytes(q));
  out.lo = spread(low_bytes(q));
  out.start_hi = start(out.hi);
  out.start_lo = start(out.lo);
  out.scale = set_f(steps.scale);
  return out;
}

// V, kMin: the shape of the format's slab.
template <int V, bool kMin>
static void transposed_halves(const TransposedTask& task, const FormatKernels& format) {
  constexpr int kWords = kSlabColumns / 4, kGroups = kWords / V;
  const int64_t groups = (task.rows + 15) / 16, blocks = task.k / format.values;
  // Bytes [row][column] of four by four to [column][row].
  const __m512i turn =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m512i sign = _mm512_set1_epi8((char)0x80);
  SlabRows<V, kMin> slab;
  alignas(64) float sums[kWords][16], minima[kGroups][16];  // [quarter * 4 + column], [row]
  for (int64_t panel = 0; panel < task.k; panel += kSlabColumns) {
    const int columns = task.k - panel < kSlabColumns ? (int)(task.k - panel) : kSlabColumns;
    const int used = columns / (4 * V);
    memset(sums, 0, sizeof sums);
    memset(minima, 0, sizeof minima);
    for (int64_t group = task.row_begin / 16; group * 16 < task.row_end; ++group) {
      const F x = lanes_of(task, group);
      const int64_t record = quant::r16_record(groups, blocks, group, panel / format.values,
                                               quant::kPanelValues / format.values);
      format.unpack(task.records + record * format.record_bytes, columns, &slab);
      for (int g = 0; g < used; ++g) {
        const QuarterHalves z = quarter_halves(mul(x, load_f(slab.scale[g])));
        _Pragma("GCC unroll 8") for (int v = 0; v < V; ++v) {
          const __m512i words = _mm512_xor_si512(load_i(slab.w[g * V + v]).v, sign);
          const __m512i u = _mm512_shuffle_epi8(words, turn);
          const __m512i hi = _mm512_dpbusd_epi32(z.start_hi, u, z.hi);
          const __m512i lo = _mm512_dpbusd_epi32(z.start_lo, u, z.lo);
          const I dot = {_mm512_add_epi32(_mm512_slli_epi32(hi, 8), lo)};
          float* sum = sums[g * V + v];
          store_f(sum, fma(to_float(dot), z.scale, load_f(sum)));
        }
        if constexpr (kMin) store_f(minima[g], fma(x, load_f(slab.min[g]), load_f(minima[g])));
      }
    }
    for (int g = 0; g < used; ++g) {
      const __m128 low = _mm_set1_ps(kMin ? reduce_add(load_f(minima[g])) : 0.0f);
      for (int v = 0; v < V; ++v) {
        const __m512 sum = _mm512_load_ps(sums[g * V + v]);
        const __m256 two =
            _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1));
        float* y = task.y + panel + (g * V + v) * 4;
        _mm_storeu_ps(y, _mm_add_ps(_mm_loadu_ps(y), _mm_add_ps(four, low)));
      }
    }
  }
}

#endif

template <class Q>
constexpr auto transposed_halves_of() -> void (*)(const TransposedTask&, const FormatKernels&) {
#if defined(KT_ISA_AVX512)
  if constexpr (Q::kGroup != 0) return &transposed_halves<Q::kGroup / 4, Q::kHasMin>;
#endif
  return nullptr;
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
