// Softmax attention of a few query heads over one sequence's pages, in one pass: per page of 64
// positions the scores, their running maximum, and the weighted sum of values so far rescaled when
// the maximum grows (online softmax, Milakov & Gimelshein 2018).
//
// Query heads that share a key head go together, so a page of keys is read once for all of them.
// Absorbed MLA is the same kernel: one key head, k_dim = latent + rope, values = the latent part.
#pragma once

#include "cpu/kernels/vector_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

template <KvType kType>
KT_INLINE F load_kv(const uint8_t* row, int64_t i) {
  if constexpr (kType == KvType::kF32) return load_f((const float*)row + i);
  if constexpr (kType == KvType::kF16) return load_half((const uint16_t*)row + i);
  if constexpr (kType == KvType::kBF16) return load_bf16((const uint16_t*)row + i);
  if constexpr (kType == KvType::kQ8_0) {
    const uint8_t* block = row + i / 32 * 34;
    uint16_t scale;
    memcpy(&scale, block, 2);
    uint8_t u[16];
    for (int j = 0; j < 16; ++j) u[j] = (uint8_t)(block[2 + i % 32 + j] ^ 0x80);
    return mul(set_f(half_to_float(scale)), sub(load_u8(u), set_f(128.0f)));
  }
}

// The last, incomplete 16 values of a row.
template <KvType kType>
KT_INLINE F load_kv_tail(const uint8_t* row, int64_t i, int64_t n) {
  uint8_t lanes[64] = {0};
  constexpr int64_t kBytes = kType == KvType::kF32 ? 4 : 2;  // q8_0 rows are multiples of 32
  memcpy(lanes, row + i * kBytes, (size_t)((n - i) * kBytes));
  return load_kv<kType == KvType::kQ8_0 ? KvType::kF16 : kType>(lanes, 0);
}

template <KvType kType>
KT_INLINE float score(const float* q, const uint8_t* key, int64_t n) {
  F even = zero_f(), odd = zero_f();
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    even = fma(load_f(q + i), load_kv<kType>(key, i), even);
    odd = fma(load_f(q + i + 16), load_kv<kType>(key, i + 16), odd);
  }
  for (; i + 16 <= n; i += 16) even = fma(load_f(q + i), load_kv<kType>(key, i), even);
  if (i < n) odd = fma(load_f_tail(q + i, n - i), load_kv_tail<kType>(key, i, n), odd);
  return reduce_add(add(even, odd));
}

template <KvType kType>
KT_INLINE void accumulate(const float* p, int count, const uint8_t* values, int64_t stride,
                          int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    F sum = load_f(out + i);
    for (int j = 0; j < count; ++j)
      sum = fma(set_f(p[j]), load_kv<kType>(values + j * stride, i), sum);
    store_f(out + i, sum);
  }
  if (i < n) {
    F sum = load_f_tail(out + i, n - i);
    for (int j = 0; j < count; ++j)
      sum = fma(set_f(p[j]), load_kv_tail<kType>(values + j * stride, i, n), sum);
    store_f_tail(out + i, sum, n - i);
  }
}

template <KvType kKey, KvType kValue>
static void attend(const AttentionTask& task) {
  // Heads in bundles of 16: their running maxima and sums fit two vectors.
  for (int head0 = 0; head0 < task.num_q; head0 += 16) {
    const int heads = task.num_q - head0 < 16 ? task.num_q - head0 : 16;
    float top[16], total[16];
    for (int h = 0; h < heads; ++h) {
      top[h] = -__builtin_inff();
      total[h] = 0.0f;
      memset(task.out + (head0 + h) * task.out_stride, 0, (size_t)task.v_dim * sizeof(float));
    }
    for (int64_t start = 0, page = 0; start < task.length; start += kKvBlock, ++page) {
      const int count = task.length - start < kKvBlock ? (int)(task.length - start) : kKvBlock;
      for (int h = 0; h < heads; ++h) {
        const float* q = task.q + (head0 + h) * task.q_stride;
        float* out = task.out + (head0 + h) * task.out_stride;
        alignas(64) float p[kKvBlock];
        for (int j = 0; j < kKvBlock; ++j)
          p[j] = j < count ? score<kKey>(q, task.k_blocks[page] + j * task.k_stride, task.k_dim)
                           : -__builtin_inff();
        F best = load_f(p);
        for (int j = 16; j < kKvBlock; j += 16) best = max(best, load_f(p + j));
        const float page_top = reduce_max(best);
        if (page_top > top[h]) {
          if (total[h] > 0.0f) {
            float factor[16];
            store_f(factor, exp_f(set_f(top[h] - page_top)));
            total[h] *= factor[0];
            for (int i = 0; i < task.v_dim; ++i) out[i] *= factor[0];
          }
          top[h] = page_top;
        }
        F sum = zero_f();
        for (int j = 0; j < count; j += 16) {
          const F e = exp_f(sub(load_f(p + j), set_f(top[h])));
          store_f(p + j, e);
        }
        for (int j = count; j < kKvBlock; ++j) p[j] = 0.0f;
        for (int j = 0; j < kKvBlock; j += 16) sum = add(sum, load_f(p + j));
        total[h] += reduce_add(sum);
        accumulate<kValue>(p, count, task.v_blocks[page], task.v_stride, task.v_dim, out);
      }
    }
    for (int h = 0; h < heads; ++h) {
      float* out = task.out + (head0 + h) * task.out_stride;
      const float inverse = total[h] > 0.0f ? 1.0f / total[h] : 0.0f;
      for (int i = 0; i < task.v_dim; ++i) out[i] *= inverse;
    }
  }
}

template <KvType kType>
static void read_row(const uint8_t* in, int64_t n, float* x) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store_f(x + i, load_kv<kType>(in, i));
  if (i < n) store_f_tail(x + i, load_kv_tail<kType>(in, i, n), n - i);
}

[[maybe_unused]] static void read_kv(const uint8_t* in, int64_t n, KvType type, float* x) {
  switch (type) {
    case KvType::kF32: return read_row<KvType::kF32>(in, n, x);
    case KvType::kF16: return read_row<KvType::kF16>(in, n, x);
    case KvType::kBF16: return read_row<KvType::kBF16>(in, n, x);
    case KvType::kQ8_0: return read_row<KvType::kQ8_0>(in, n, x);
    case KvType::kI16: return;  // not in rows
  }
}

[[maybe_unused]] static void attention(const AttentionTask& task) {
  // The combinations offered: equal types, and f16 keys with q8_0 values.
  if (task.k_type == KvType::kF32) return attend<KvType::kF32, KvType::kF32>(task);
  if (task.k_type == KvType::kBF16) return attend<KvType::kBF16, KvType::kBF16>(task);
  if (task.k_type == KvType::kQ8_0) return attend<KvType::kQ8_0, KvType::kQ8_0>(task);
  if (task.v_type == KvType::kQ8_0) return attend<KvType::kF16, KvType::kQ8_0>(task);
  return attend<KvType::kF16, KvType::kF16>(task);
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
