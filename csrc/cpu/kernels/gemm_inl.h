// Matrix products on R16 for many tokens: a row group is read once per kTokenBlock tokens, each record
// unpacked to a tile in L1, and every token's dot products taken from it with the group's words in
// registers.
//
// Registers on AVX-512: 8 weight words, 4 accumulator chains, scale, minimum, row sums. Partial
// sums of the tokens lie in L1 (64 B each), touched once per 16 or 32 values.
#pragma once

#include "cpu/kernels/activations_inl.h"
#include "cpu/kernels/float_tile_inl.h"
#include "cpu/kernels/store_rows_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

constexpr int kTokenBlock = 64;  // 64 * 64 B of partial sums + a 4 KiB tile: half of L1

template <class Q, bool kExactRow>
static void matmul_ints(const MatmulTask& task, int first, int count) {
  using T = Tile<Q>;
  constexpr int kVectors = T::kVectors;
  const int64_t blocks = task.k / Q::kValues;
  const size_t group_bytes = (size_t)blocks * quant::R16<Q>::kRecordBytes;
  T tile;
  alignas(64) float sums[kTokenBlock][16];
  for (int64_t group = task.group_begin; group < task.group_end; ++group) {
    const uint8_t* record = task.weights + (size_t)group * group_bytes;
    for (int t = 0; t < count; ++t) store_f(sums[t], zero_f());
    for (int64_t b = 0; b < blocks; ++b, record += quant::R16<Q>::kRecordBytes) {
      unpack_tile(record, tile);
      for (int g = 0; g < T::kGroups; ++g) {
        Words words[kVectors];
        for (int j = 0; j < kVectors; ++j) words[j] = load_words(tile.u[g * kVectors + j]);
        const I row_sums = kExactRow ? set_i(0) : sum_words<kVectors>(words);
        const F scale = load_f(tile.scale[g]);
        const F low = Q::kHasMin ? load_f(tile.min[Q::kHasMin ? g : 0]) : zero_f();
        const int64_t value = b * Q::kValues + g * Q::kGroup;
        const int64_t act = value / 32;
        const int at = (int)(value % 32);
        for (int t = 0; t < count; ++t) {
          const ActBlock& x = ((const ActBlock*)task.x[first + t])[act];
          const int32_t sum = Q::kGroup == 32 ? x.sum[0] + x.sum[1] : x.sum[at / 16];
          I dot = dot_group<kVectors, kExactRow>(words, x, at, row_sums);
          if constexpr (Q::kOffset != 0) dot = add(dot, set_i(-Q::kOffset * sum));
          F total = fma(mul(to_float(dot), set_f(x.scale)), scale, load_f(sums[t]));
          if constexpr (Q::kHasMin) total = fma(low, set_f(x.scale * (float)sum), total);
          store_f(sums[t], total);
        }
      }
    }
    for (int t = 0; t < count; ++t) store_rows(task, group, first + t, load_f(sums[t]));
  }
}

template <class Q>
static void matmul_floats(const MatmulTask& task, int first, int count) {
  constexpr int kChunk = kFloatChunk<Q>;
  const size_t group_bytes = (size_t)(task.k / Q::kValues) * quant::R16<Q>::kRecordBytes;
  alignas(64) float weights[kChunk][16];
  alignas(64) float sums[kTokenBlock][16];
  for (int64_t group = task.group_begin; group < task.group_end; ++group) {
    const uint8_t* records = task.weights + (size_t)group * group_bytes;
    for (int t = 0; t < count; ++t) store_f(sums[t], zero_f());
    for (int64_t k = 0; k < task.k; k += kChunk) {
      const int width = task.k - k < kChunk ? (int)(task.k - k) : kChunk;
      unpack_floats<Q>(records + (size_t)(k / Q::kValues) * quant::R16<Q>::kRecordBytes, width,
                       weights);
      for (int t = 0; t < count; ++t) {
        const float* x = (const float*)task.x[first + t] + k;
        F even = zero_f(), odd = zero_f();
        int i = 0;
        for (; i + 1 < width; i += 2) {
          even = fma(load_f(weights[i]), set_f(x[i]), even);
          odd = fma(load_f(weights[i + 1]), set_f(x[i + 1]), odd);
        }
        if (i < width) even = fma(load_f(weights[i]), set_f(x[i]), even);
        store_f(sums[t], add(load_f(sums[t]), add(even, odd)));
      }
    }
    for (int t = 0; t < count; ++t) store_rows(task, group, first + t, load_f(sums[t]));
  }
}

/// Any number of tokens.
template <class Q>
static void gemm(const MatmulTask& task) {
  for (int first = 0; first < task.num_tokens; first += kTokenBlock) {
    const int left = task.num_tokens - first;
    const int count = left < kTokenBlock ? left : kTokenBlock;
    if constexpr (Q::kGroup != 0) {
      if (task.rounding == Rounding::kExact) {
        matmul_ints<Q, true>(task, first, count);
        continue;
      }
      if (task.rounding == Rounding::kDigit) {
        matmul_ints<Q, false>(task, first, count);
        continue;
      }
    }
    matmul_floats<Q>(task, first, count);
  }
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
