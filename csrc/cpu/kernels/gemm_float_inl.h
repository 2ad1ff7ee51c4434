// Matrix products in float: weights that are stored as floats, and the reference arithmetic.
//
// A row's sums are taken in one order, whatever other rows and tokens come with it: in runs of
// kFold columns the even and the odd ones by themselves, then total += even + odd. Few tokens meet
// stored floats as gemv_inl.h's kernels meet their records, in one stream that is read once. For
// many, and for other formats, weights become floats in L1 first, and tiles of tokens times two
// row groups stay in registers.
#pragma once

#include "cpu/kernels/float_tile_inl.h"
#include "cpu/kernels/store_rows_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

constexpr int kTokenBlock = 64;  // whose partial sums for two row groups are 8 KiB
constexpr int kFold = 64;

// Tokens and row groups of a tile, by what registers hold twice beside the weights.
#if defined(KT_ISA_AVX512)
constexpr int kTileTokens = 4, kTileGroups = 2;
#elif defined(KT_ISA_AVX2)
constexpr int kTileTokens = 2, kTileGroups = 1;
#else
constexpr int kTileTokens = 1, kTileGroups = 1;
#endif

#define KT_EACH(i, n) _Pragma("GCC unroll 4") for (int i = 0; i < n; ++i)

// Sixteen rows' weights of consecutive columns: floats in L1, or stored ones as they come by.
struct LocalFloats {
  const float (*rows)[16];
  KT_INLINE F at(const LocalFloats& w, int64_t i) { return load_f(w.rows[i]); }
};
template <class Q>
struct StoredFloats {
  const uint8_t* records;
  KT_INLINE F at(const StoredFloats& w, int64_t i) {
    return load_stored<Q>(w.records + i * (int64_t)quant::R16<Q>::kRecordBytes);
  }
};

// total[g][t] += w[g] . x[t] over `count` columns.
template <int T, int G, class Weights>
KT_INLINE void add_products(const Weights (&w)[G], int64_t count, const float* const* x,
                            F (&total)[G][T]) {
  for (int64_t begin = 0; begin < count; begin += kFold) {
    const int64_t end = count - begin < kFold ? count : begin + kFold;
    F even[G][T], odd[G][T];
    KT_EACH(g, G) KT_EACH(t, T) even[g][t] = odd[g][t] = zero_f();
    int64_t i = begin;
    for (; i + 1 < end; i += 2) {
      F first[G], second[G];
      KT_EACH(g, G) {
        first[g] = Weights::at(w[g], i);
        second[g] = Weights::at(w[g], i + 1);
      }
      KT_EACH(t, T) {
        const F u = set_f(x[t][i]), v = set_f(x[t][i + 1]);
        KT_EACH(g, G) {
          even[g][t] = fma(first[g], u, even[g][t]);
          odd[g][t] = fma(second[g], v, odd[g][t]);
        }
      }
    }
    if (i < end)
      KT_EACH(g, G) KT_EACH(t, T)
        even[g][t] = fma(Weights::at(w[g], i), set_f(x[t][i]), even[g][t]);
    KT_EACH(g, G) KT_EACH(t, T) total[g][t] = add(total[g][t], add(even[g][t], odd[g][t]));
  }
}

// The same for sums in memory, of which sums[g] has the tokens of row group g. Never inlined, as
// gemv_run (gemv_inl.h).
template <int T, int G, class Weights>
[[gnu::noinline]] static void floats_tile(const Weights (&w)[G], int64_t count,
                                          const float* const* x, F* const (&sums)[G]) {
  const float* y[T];
  F total[G][T];
  KT_EACH(t, T) y[t] = x[t];
  KT_EACH(g, G) KT_EACH(t, T) total[g][t] = sums[g][t];
  add_products<T, G>(w, count, y, total);
  KT_EACH(g, G) KT_EACH(t, T) sums[g][t] = total[g][t];
}

// The same for any number of tokens.
template <int G, class Weights>
KT_INLINE void floats_tiles(const Weights (&w)[G], int64_t count, const float* const* x, int tokens,
                            F* const (&sums)[G]) {
  constexpr int T = kTileTokens;
  F* at[G];
  int t = 0;
  for (; t + T <= tokens; t += T) {
    for (int g = 0; g < G; ++g) at[g] = sums[g] + t;
    floats_tile<T, G>(w, count, x + t, at);
  }
  for (; T > 2 && t + 2 <= tokens; t += 2) {
    for (int g = 0; g < G; ++g) at[g] = sums[g] + t;
    floats_tile<2, G>(w, count, x + t, at);
  }
  for (; T > 1 && t < tokens; ++t) {
    for (int g = 0; g < G; ++g) at[g] = sums[g] + t;
    floats_tile<1, G>(w, count, x + t, at);
  }
}

// Stored floats for few tokens: records in the order in which they stand.
template <class Q>
static void gemv_floats(const MatmulTask& task) {
  constexpr int64_t kBand = quant::kBandGroups, kPanel = quant::kPanelValues;
  F total[kBand][kFewTokens];
  for (int64_t begin = task.group_begin, end; begin < task.group_end; begin = end) {
    end = (begin / kBand + 1) * kBand;
    if (end > task.group_end) end = task.group_end;
    for (int64_t g = 0; g < end - begin; ++g)
      for (int t = 0; t < task.num_tokens; ++t) total[g][t] = zero_f();
    for (int64_t k = 0; k < task.k; k += kPanel) {
      const int64_t width = task.k - k < kPanel ? task.k - k : kPanel;
      const float* x[kFewTokens];
      for (int t = 0; t < task.num_tokens; ++t) x[t] = (const float*)task.x[t] + k;
      for (int64_t g = 0; g < end - begin; ++g) {
        const StoredFloats<Q> run[1] = {{record_at<Q>(task, begin + g, k)}};
        floats_tiles<1>(run, width, x, task.num_tokens, {total[g]});
      }
    }
    for (int64_t g = 0; g < end - begin; ++g)
      for (int t = 0; t < task.num_tokens; ++t) store_rows(task, begin + g, t, total[g][t]);
  }
}

// `count` (<= kTokenBlock) tokens from `first` on times G row groups from `group` on.
template <class Q, int G>
static void floats_block(const MatmulTask& task, int64_t group, int first, int count) {
  constexpr int kChunk = kFloatChunk<Q>;
  alignas(64) float weights[G][kChunk][16];
  F sums[G][kTokenBlock];
  LocalFloats local[G];
  F* at[G];
  const float* x[kTokenBlock];
  for (int g = 0; g < G; ++g) {
    local[g] = {weights[g]};
    at[g] = sums[g];
    for (int t = 0; t < count; ++t) sums[g][t] = zero_f();
  }
  for (int64_t k = 0; k < task.k; k += kChunk) {
    const int width = task.k - k < kChunk ? (int)(task.k - k) : kChunk;
    for (int g = 0; g < G; ++g)
      unpack_floats<Q>(record_at<Q>(task, group + g, k / Q::kValues), width, weights[g]);
    for (int t = 0; t < count; ++t) x[t] = (const float*)task.x[first + t] + k;
    floats_tiles<G>(local, width, x, count, at);
  }
  for (int g = 0; g < G; ++g)
    for (int t = 0; t < count; ++t) store_rows(task, group + g, first + t, sums[g][t]);
}

template <class Q>
static void gemm_floats(const MatmulTask& task) {
  constexpr int G = kTileGroups;
  if constexpr (Q::kGroup == 0)
    if (task.num_tokens <= kFewTokens) return gemv_floats<Q>(task);
  for (int first = 0; first < task.num_tokens; first += kTokenBlock) {
    const int left = task.num_tokens - first, count = left < kTokenBlock ? left : kTokenBlock;
    int64_t group = task.group_begin;
    for (; group + G <= task.group_end; group += G) floats_block<Q, G>(task, group, first, count);
    for (; G > 1 && group < task.group_end; ++group) floats_block<Q, 1>(task, group, first, count);
  }
}

#undef KT_EACH

}  // namespace
}  // namespace kt::cpu::KT_ISA
