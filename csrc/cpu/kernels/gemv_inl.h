// Matrix products on R16 for few tokens, each with two int8 halves: every line of the weights is
// read once, in order of address, and reading is what takes the time.
//
//   band of 8 groups of 16 rows, panel of 1024 columns, group: a run of records, metadata inside,
//     and after it the next group's (quant/r16.h): all of a thread's rows are one stream
//       chunk: a rolled loop over words; each step gives 1 to 4 vectors of 64 bytes
//         token 0..T-1: hi += bytes . x.hi, lo += bytes . x.lo       (a byte dot product each)
//       at the end of a chunk, per group of values and token: total += float((hi << 8) + lo) *
//       scales
//
// What the memory system asks for (measured on Zen 4; a stream of its own per core brings 30 GB/s):
// no gaps, no second stream, and few load instructions with small strides, so inner loops stay rolled.
// What the core asks for, so that products hide behind reading: scales stay in registers, because a
// store of 64 bytes takes the time of one and a half dot products.
// The formats' gemv_record are in headers of their own, included before this one.
#pragma once

#include "cpu/kernels/byte_halves_inl.h"
#include "cpu/kernels/float_tile_inl.h"
#include "cpu/kernels/halves_inl.h"
#include "cpu/kernels/store_rows_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

#if defined(KT_HAS_GEMV)

// Whether a format has a kernel of its own here.
template <class Q>
concept HasRecord = requires(const uint8_t* record, const BlockOf<Q>* const* x, F* total) {
  gemv_record<1>(Q{}, record, x, total);
};

// total += a run of records times the activations that x points to, for T tokens. Never inlined: where
// several stand in one function GCC 12 spills registers in each, which costs up to half of the speed.
template <class Q, int T>
[[gnu::noinline]] static void gemv_run(const uint8_t* record, int64_t blocks,
                                       const BlockOf<Q>* const* x, F* total) {
  const BlockOf<Q>* y[T];
  F sums[T];
  KT_TOKENS {
    y[t] = x[t];
    sums[t] = total[t];
  }
  for (int64_t b = 0; b < blocks; ++b) {
    gemv_record<T>(Q{}, record, y, sums);
    KT_TOKENS y[t] += Q::kValues / 32;
    record += quant::R16<Q>::kRecordBytes;
  }
  KT_TOKENS total[t] = sums[t];
}

// Rows of activations that share the registers. Sixteen of 32 bytes, and formats with four
// accumulators of halves per row, have room for two.
#if defined(KT_ISA_AVX512)
template <class Q>
constexpr int kMostTokens = 4;
#else
template <class Q>
constexpr int kMostTokens = 2;
#endif
template <>
constexpr int kMostTokens<quant::Q6_K> = 2;
template <>
constexpr int kMostTokens<quant::Q3_K> = 2;
template <>
constexpr int kMostTokens<quant::Q2_K> = 2;
template <>
constexpr int kMostTokens<quant::TQ2_0> = 2;
template <>
constexpr int kMostTokens<quant::TQ1_0> = 2;

// Whether a format's kernel wants the activations in the order of codebook_inl.h.
#if defined(KT_ISA_AVX512) && !defined(__AVX512VBMI__)
using Reordered =
    quant::TypeList<quant::IQ2_XXS, quant::IQ2_XS, quant::IQ2_S, quant::IQ3_XXS, quant::IQ3_S>;
#else
using Reordered = quant::TypeList<quant::IQ1_S, quant::IQ1_M, quant::IQ2_XXS, quant::IQ2_XS,
                                  quant::IQ2_S, quant::IQ3_XXS, quant::IQ3_S>;
#endif
template <class Q>
constexpr bool kReorders = is_one_of<Q>(Reordered{});

// Whether it takes the activations of a panel otherwise than they come.
template <class Q>
constexpr bool kPrepares = kReorders<Q> || sizeof(BlockOf<Q>) != sizeof(ActBlock);

template <class Q>
KT_INLINE void prepare(const ActBlock* from, int64_t blocks, BlockOf<Q>* to) {
  if constexpr (kReorders<Q>) order_activations(Q{}, from, blocks, to);
#if defined(KT_ISA_AVX2)
  if constexpr (kInBytes<Q>)
    for (int64_t b = 0; b < blocks; ++b) take_apart<kCentre<Q>>(from[b], to[b]);
#endif
}

// Of what the worker multiplies next, with every row group of a band's last panel: the stream then
// goes on at once, until the core's own prefetching has found it.
constexpr int kLinesAhead = 16;
KT_INLINE void fetch_lines(const uint8_t* at) {
  for (int i = 0; i < kLinesAhead; ++i) __builtin_prefetch(at + 64 * i, 0, 2);
}

// Records in the order in which they stand. A run's weights come from memory for the first four
// (two) tokens and from L1 for the others.
template <class Q>
static void gemv_halves(const MatmulTask& task) {
  constexpr int64_t kBand = quant::kBandGroups, kPanel = quant::kPanelBlocks<Q>;
  const int64_t blocks = task.k / Q::kValues;
  const int tokens = task.num_tokens;
  F total[kBand][kFewTokens];
  BlockOf<Q> prepared[kPrepares<Q> ? kFewTokens : 1][kPrepares<Q> ? quant::kPanelValues / 32 : 1];
  for (int64_t begin = task.group_begin, end; begin < task.group_end; begin = end) {
    end = (begin / kBand + 1) * kBand;
    if (end > task.group_end) end = task.group_end;
    for (int64_t g = 0; g < end - begin; ++g)
      for (int t = 0; t < tokens; ++t) total[g][t] = zero_f();
    for (int64_t block = 0; block < blocks; block += kPanel) {
      const int64_t width = blocks - block < kPanel ? blocks - block : kPanel;
      const BlockOf<Q>* x[kFewTokens];
      for (int t = 0; t < tokens; ++t) {
        const ActBlock* from = (const ActBlock*)task.x[t] + block * Q::kValues / 32;
        if constexpr (kPrepares<Q>) {
          prepare<Q>(from, width * Q::kValues / 32, prepared[t]);
          x[t] = prepared[t];
        } else {
          x[t] = from;
        }
      }
      const bool is_last = end == task.group_end && block + width == blocks && task.next[0];
      for (int64_t g = 0; g < end - begin; ++g) {
        const uint8_t* run = record_at<Q>(task, begin + g, block);
        if (is_last) fetch_lines(task.next[0] + g * kLinesAhead * 64);
        int t = 0;
        if constexpr (kMostTokens<Q> >= 4)
          for (; t + 4 <= tokens; t += 4) gemv_run<Q, 4>(run, width, x + t, total[g] + t);
        for (; t + 2 <= tokens; t += 2) gemv_run<Q, 2>(run, width, x + t, total[g] + t);
        if (t < tokens) gemv_run<Q, 1>(run, width, x + t, total[g] + t);
      }
    }
    for (int64_t g = 0; g < end - begin; ++g)
      for (int t = 0; t < tokens; ++t) store_rows(task, begin + g, t, total[g][t]);
  }
}

// Whether a format's kernel takes its sums in an order of its own, so that no other may take them.
#if defined(KT_ISA_AVX512)
using OwnOrder = quant::TypeList<quant::Q2_K, quant::Q3_K, quant::TQ1_0, quant::TQ2_0, quant::IQ1_M,
                                 quant::IQ2_XS, quant::IQ2_S>;
#else
using OwnOrder = quant::TypeList<quant::Q2_K, quant::Q3_K, quant::Q4_K, quant::Q5_K>;
#endif
template <class Q>
constexpr bool kOwnOrder = is_one_of<Q>(OwnOrder{});

template <class Q>
constexpr auto gemv_of() -> void (*)(const MatmulTask&) {
  if constexpr (HasRecord<Q>)
    return &gemv_halves<Q>;
  else
    return nullptr;
}

#else

template <class Q>
constexpr bool kOwnOrder = false;
template <class Q>
constexpr auto gemv_of() -> void (*)(const MatmulTask&) {
  return nullptr;
}

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
