// Softmax attention in 16-bit integers over one tile: 64 positions of one key head.
//
// Keys, values, queries and probabilities are int16 with a float step per row, multiplied in pairs
// into 32 bits: twice the rate of float fma on every instruction set. A step comes from the row's
// norm, so a product of two keys' worth of integers stays below 2^31 whatever their length, and its
// error is below that of keys in binary16.
//
// Both products of attention are one kernel: C[row][32 columns] = sum over pairs of A[row][pair] *
// B[pair][32 columns], where B is a panel of a tile, streamed once for up to eight rows:
//
//     tile:  twice   a panel of the keys of 32 positions, [pair of dimensions][32 positions][2],
//                    and their 32 steps
//            64 steps of values
//            a panel of values per 32 dimensions, [pair of positions][32 dimensions][2]
//
// which is the order it is read in: memory is streamed without a gap.
//
// Registers on AVX-512: 8 rows x 2 vectors of sums, 2 of B, 1 of A. A step of the loop is 16 dot
// products to 128 bytes of B: the rate memory delivers at.
#pragma once

#include "cpu/kernels/attention_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

#if defined(KT_ISA_AVX512)
constexpr int kTileRows = 8;
// By name: of the intrinsic GCC 12 copies the sums from register to register in every round.
KT_INLINE I dot_pairs(I sum, I a, I b) {
  __asm__("vpdpwssd %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
  return sum;
}
KT_INLINE void store_int16(int16_t* p, I a) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(a.v));
}
#elif defined(KT_ISA_AVX2)
constexpr int kTileRows = 2;
KT_INLINE I dot_pairs(I sum, I a, I b) {
  return {dot_pairs(sum.a, a.a, b.a), dot_pairs(sum.b, a.b, b.b)};
}
KT_INLINE void store_int16(int16_t* p, I a) {
  const __m256i packed = _mm256_packs_epi32(a.a, a.b);
  _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(packed, 0xD8));
}
#else
constexpr int kTileRows = 2;
KT_INLINE I dot_pairs(I sum, I a, I b) {
  int16_t x[32], y[32];
  memcpy(x, a.v, 64);
  memcpy(y, b.v, 64);
  for (int i = 0; i < 16; ++i) sum.v[i] += x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1];
  return sum;
}
KT_INLINE void store_int16(int16_t* p, I a) {
  for (int i = 0; i < 16; ++i) p[i] = (int16_t)a.v[i];
}
#endif

constexpr float kInt16Top = 32767.0f;
// Two rows of this norm have a product below 2^31, with room for what rounding adds.
constexpr float kInt16Norm = 43000.0f;
// Values and the integers of a tile's probabilities share the 31 bits of their product: a value is
// at most this, the sum of probabilities at most that.
constexpr float kValueTop = 10920.0f, kWeightSum = 196000.0f;

// The size of one unit for a row; 0 for a row of zeros, not finite where the row is not.
KT_INLINE float int16_step(const float* x, int64_t n, float most = kInt16Top) {
  F top = zero_f(), squares = zero_f();
  for (int64_t i = 0; i < n; i += 16) {
    const F value = n - i >= 16 ? load_f(x + i) : load_f_tail(x + i, n - i);
    top = max(top, max(value, neg(value)));
    squares = fma(value, value, squares);
  }
  const float by_norm = __builtin_sqrtf(reduce_add(squares)) / kInt16Norm;  // NaN shows here
  const float by_top = reduce_max(top) / most;
  return by_top > by_norm ? by_top : by_norm;
}

KT_INLINE F int16_factor(float step) { return set_f(step > 0.0f ? 1.0f / step : 0.0f); }

[[maybe_unused]] static float round_int16(const float* x, int64_t n, int16_t* out) {
  const float step = int16_step(x, n);
  const F factor = int16_factor(step);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store_int16(out + i, to_int(mul(load_f(x + i), factor)));
  if (i < n) {
    int16_t lanes[16];
    store_int16(lanes, to_int(mul(load_f_tail(x + i, n - i), factor)));
    memcpy(out + i, lanes, (size_t)(n - i) * 2);
  }
  if (n % 2 != 0) out[n] = 0;
  return step;
}

[[maybe_unused]] static void put_tile(const float* key, int k_dim, const float* value, int v_dim, int slot,
                     uint8_t* tile) {
  const int pairs = (k_dim + 1) / 2;
  int16_t* keys = (int16_t*)(tile + slot / 32 * (kv_tile_k_bytes(k_dim) / 2));
  float* v_steps = (float*)(tile + kv_tile_k_bytes(k_dim));
  int16_t* values = (int16_t*)(v_steps + kKvBlock);

  const float k_step = int16_step(key, k_dim);
  const F k_factor = int16_factor(k_step);
  ((float*)(keys + (int64_t)pairs * 64))[slot % 32] = k_step;
  int16_t* column = keys + slot % 32 * 2;
  for (int i = 0; i < k_dim; i += 16) {
    alignas(64) int16_t lanes[16];
    const F x = k_dim - i >= 16 ? load_f(key + i) : load_f_tail(key + i, k_dim - i);
    store_int16(lanes, to_int(mul(x, k_factor)));
    const int end = k_dim - i >= 16 ? 8 : (k_dim - i + 1) / 2;
    for (int t = 0; t < end; ++t) memcpy(column + (int64_t)(i / 2 + t) * 64, lanes + 2 * t, 4);
  }

  // A value takes one half of a pair of positions; the other half stays.
  const float v_step = int16_step(value, v_dim, kValueTop);
  const F v_factor = int16_factor(v_step);
  v_steps[slot] = v_step;
  const bool odd = slot % 2 != 0;
  const I kept = set_i(odd ? 0xFFFF : (int32_t)0xFFFF0000);
  for (int i = 0; i < v_dim; i += 16) {
    const F x = v_dim - i >= 16 ? load_f(value + i) : load_f_tail(value + i, v_dim - i);
    const I lanes = to_int(mul(x, v_factor));
    const I placed = odd ? shl(lanes, 16) : band(lanes, set_i(0xFFFF));
    int16_t* at = values + (int64_t)(i / 32) * 32 * 64 + slot / 2 * 64 + i % 32 * 2;
    store_i(at, bor(band(load_i(at), kept), placed));
  }
}

// out[r][2 vectors] = A[r] . panel, for R rows. What lies `ahead` bytes further on, the same panel of
// the next tile, is brought into the L2 meanwhile: the hardware's own prefetch stops while scores are
// weighed (eight rows on a Zen 4 core: 22 GB/s from memory, 16 without).
template <int R>
KT_INLINE void panel_product(const int16_t* const* a, const int16_t* panel, int pairs,
                             int64_t ahead, I (*out)[2]) {
  I sum[R][2];
  for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = set_i(0);
  for (int t = 0; t < pairs; ++t) {
    const I b0 = load_i(panel + t * 64), b1 = load_i(panel + t * 64 + 32);
    __builtin_prefetch((const uint8_t*)(panel + t * 64) + ahead, 0, 2);
    __builtin_prefetch((const uint8_t*)(panel + t * 64 + 32) + ahead, 0, 2);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      int32_t pair;
      memcpy(&pair, a[r] + 2 * t, 4);
      const I x = set_i(pair);
      sum[r][0] = dot_pairs(sum[r][0], x, b0);
      sum[r][1] = dot_pairs(sum[r][1], x, b1);
    }
  }
  for (int r = 0; r < R; ++r) out[r][0] = sum[r][0], out[r][1] = sum[r][1];
}

[[maybe_unused]] static void get_tile(const uint8_t* tile, int k_dim, int v_dim, int slot, float* key, float* value) {
  const int pairs = (k_dim + 1) / 2;
  const int16_t* keys = (const int16_t*)(tile + slot / 32 * (kv_tile_k_bytes(k_dim) / 2));
  const float k_step = ((const float*)(keys + (int64_t)pairs * 64))[slot % 32];
  for (int i = 0; i < k_dim; ++i)
    key[i] = k_step * (float)keys[(int64_t)(i / 2) * 64 + slot % 32 * 2 + i % 2];
  const float* v_steps = (const float*)(tile + kv_tile_k_bytes(k_dim));
  const int16_t* values = (const int16_t*)(v_steps + kKvBlock);
  for (int i = 0; i < v_dim; ++i)
    value[i] = v_steps[slot] *
               (float)values[(int64_t)(i / 32) * 2048 + slot / 2 * 64 + i % 32 * 2 + slot % 2];
}

// 2^x for x <= 0, at least 2^-126; relative error 3e-6, which is a tenth of a weight's rounding. A
// NaN stays one.
KT_INLINE F exp2_f(F x) {
  x = max(set_f(-126.0f), x);
  const F n = round_f(x), f = sub(x, n);
  F p = fma(set_f(1.339887440e-3f), f, set_f(9.618437358e-3f));
  p = fma(p, f, set_f(5.550332471e-2f));
  p = fma(p, f, set_f(2.402264791e-1f));
  p = fma(p, f, set_f(6.931472029e-1f));
  p = fma(p, f, set_f(1.0f));
  return mul(p, as_float(shl(add(to_int(n), set_i(127)), 23)));
}

// Numbers of up to 16 rows, a lane each; lanes beyond are 0.
struct RowLanes {
  alignas(64) float of[16];
};

// score[r] <- the weights of R rows, times the steps of their values; p <- the same in integers.
// The passes go over all rows, so that one row's chain of operations hides another's.
template <int R>
KT_INLINE void weigh(const TileTask& task, int row, const float* v_steps, float (*score)[kKvBlock],
                     int16_t (*p)[kKvBlock], RowLanes& keep, RowLanes& unit) {
  RowLanes before = {}, top = {}, sum = {}, weighted = {}, largest = {};
  for (int r = 0; r < R; ++r) {
    const float* s = score[r];
    before.of[r] = task.top[row + r];
    top.of[r] = reduce_max(
        max(max(load_f(s), load_f(s + 16)), max(load_f(s + 32), load_f(s + 48))));
  }
  // Where nothing was seen yet the largest is -inf, and differences are taken from 0.
  const F none = set_f(-3e38f);
  store_f(top.of, max(max(load_f(top.of), load_f(before.of)), none));
  store_f(keep.of, exp2_f(sub(load_f(before.of), load_f(top.of))));
  for (int r = 0; r < R; ++r) {
    float* s = score[r];
    alignas(64) float known[kKvBlock];
    const float* steps = v_steps;
    const int count = task.count[row + r];
    if (count < kKvBlock) {  // a slot beyond may hold anything
      for (int j = 0; j < kKvBlock; ++j) known[j] = j < count ? v_steps[j] : 0.0f;
      steps = known;
    }
    const F high = set_f(top.of[r]);
    F e[4], x[4];
    for (int i = 0; i < 4; ++i) {
      e[i] = exp2_f(sub(load_f(s + 16 * i), high));
      x[i] = mul(e[i], load_f(steps + 16 * i));
      store_f(s + 16 * i, x[i]);
    }
    sum.of[r] = reduce_add(add(add(e[0], e[1]), add(e[2], e[3])));
    weighted.of[r] = reduce_add(add(add(x[0], x[1]), add(x[2], x[3])));
    largest.of[r] = reduce_max(max(max(x[0], x[1]), max(x[2], x[3])));
  }
  // What a unit of the products with values is worth; 0 where nothing is seen.
  const F tiny = set_f(1e-37f);
  store_f(unit.of, max(mul(load_f(largest.of), set_f(1.0f / kInt16Top)),
               mul(load_f(weighted.of), set_f(1.0f / kWeightSum))));
  RowLanes factor;
  store_f(factor.of, div(set_f(1.0f), max(tiny, load_f(unit.of))));
  for (int r = 0; r < R; ++r) {
    task.total[row + r] = task.total[row + r] * keep.of[r] + sum.of[r];
    task.top[row + r] = top.of[r];
    const F by = set_f(factor.of[r]);
    for (int i = 0; i < 4; ++i)
      store_int16(p[r] + 16 * i, to_int(mul(load_f(score[r] + 16 * i), by)));
  }
}

// score[r][64] = A[r] . the tile's keys, for R rows of `width` dimensions; unit: of A's integers.
template <int R>
KT_INLINE void score_rows(const int16_t* const* a, const float* unit, int k_dim,
                          const uint8_t* tile, int64_t ahead, float* const* score) {
  const int pairs = (k_dim + 1) / 2;
  I product[R][2];
  for (int half = 0; half < 2; ++half) {
    const int16_t* keys = (const int16_t*)(tile + half * (kv_tile_k_bytes(k_dim) / 2));
    const float* steps = (const float*)(keys + (int64_t)pairs * 64);
    panel_product<R>(a, keys, pairs, ahead, product);
    for (int r = 0; r < R; ++r) {
      const F worth = set_f(unit[r]);
      for (int i = 0; i < 2; ++i)
        store_f(score[r] + half * 32 + i * 16,
                mul(mul(to_float(product[r][i]), load_f(steps + i * 16)), worth));
    }
  }
}

template <int R>
static void score_last(const ScoreTask& task, int row, int left) {
  if (left == R)
    return score_rows<R>(task.x + row, task.step + row, task.k_dim, task.tile, 0, task.out + row);
  if constexpr (R > 1) score_last<R - 1>(task, row, left);
}

static void score_tile(const ScoreTask& task) {
  int row = 0;
  for (; row + kTileRows <= task.num_rows; row += kTileRows)
    score_rows<kTileRows>(task.x + row, task.step + row, task.k_dim, task.tile, 0, task.out + row);
  if (row < task.num_rows) score_last<kTileRows>(task, row, task.num_rows - row);
}

// R rows of the task from `row` on.
template <int R>
static void attend_rows(const TileTask& task, int row) {
  const int64_t ahead =
      task.next && row == 0 ? (int64_t)((uintptr_t)task.next - (uintptr_t)task.tile) : 0;
  const float* v_steps = (const float*)(task.tile + kv_tile_k_bytes(task.k_dim));
  const int16_t* values = (const int16_t*)(v_steps + kKvBlock);
  I product[R][2];
  alignas(64) float score[R][kKvBlock];
  float* score_of[R];
  float unit_of[R];
  for (int r = 0; r < R; ++r) {
    score_of[r] = score[r];
    unit_of[r] = task.q_step[row + r] * 1.44269504f;
  }
  score_rows<R>(task.q + row, unit_of, task.k_dim, task.tile, ahead, score_of);
  for (int r = 0; r < R; ++r)
    for (int j = task.count[row + r]; j < kKvBlock; ++j) score[r][j] = -__builtin_inff();

  alignas(64) int16_t p[R][kKvBlock];
  RowLanes keep, unit;
  weigh<R>(task, row, v_steps, score, p, keep, unit);

  const int16_t* p_rows[R];
  for (int r = 0; r < R; ++r) p_rows[r] = p[r];
  for (int at = 0; at < task.v_dim; at += 32) {
    panel_product<R>(p_rows, values + (int64_t)at / 32 * 32 * 64, kKvBlock / 2, ahead,
                     product);
    for (int r = 0; r < R; ++r) {
      const F old = set_f(keep.of[r]), worth = set_f(unit.of[r]);
      float* out = task.out[row + r] + at;
      for (int i = 0; i < 2; ++i) {
        const int64_t left = task.v_dim - at - 16 * i;
        if (left >= 16) {
          store_f(out + 16 * i, fma(to_float(product[r][i]), worth, mul(load_f(out + 16 * i), old)));
        } else if (left > 0) {
          const F sums = mul(load_f_tail(out + 16 * i, left), old);
          store_f_tail(out + 16 * i, fma(to_float(product[r][i]), worth, sums), left);
        }
      }
    }
  }
}

template <int R>
static void attend_last(const TileTask& task, int row, int left) {
  if (left == R) return attend_rows<R>(task, row);
  if constexpr (R > 1) attend_last<R - 1>(task, row, left);
}

static void attend_tile(const TileTask& task) {
  int row = 0;
  for (; row + kTileRows <= task.num_rows; row += kTileRows) {
    int most = 0;
    for (int r = 0; r < kTileRows; ++r)
      most = task.count[row + r] > most ? task.count[row + r] : most;
    if (most > 0) attend_rows<kTileRows>(task, row);
  }
  if (row < task.num_rows) attend_last<kTileRows>(task, row, task.num_rows - row);
}

// state += part, of two runs of positions; the last part divides by the sum of weights.
[[maybe_unused]] static void fold_tiles(const FoldTask& task) {
  for (int r = 0; r < task.num_rows; ++r) {
    const float a = task.top[r], b = task.part_top[r];
    const float top = a > b ? a : b;
    alignas(64) float factor[16] = {0}, at[16] = {0};
    at[0] = top > -3e38f ? a - top : 0.0f;
    at[1] = top > -3e38f ? b - top : 0.0f;
    store_f(factor, exp2_f(load_f(at)));
    const float total = task.total[r] * factor[0] + task.part_total[r] * factor[1];
    task.top[r] = top;
    task.total[r] = total;
    const float share = task.is_last ? (total > 0.0f || total != total ? 1.0f / total : 0.0f) : 1.0f;
    const F keep = set_f(factor[0]), with = set_f(factor[1]), scale = set_f(share);
    float* out = task.out[r];
    const float* part = task.part_out[r];
    int64_t i = 0;
    for (; i + 16 <= task.v_dim; i += 16)
      store_f(out + i, mul(fma(load_f(part + i), with, mul(load_f(out + i), keep)), scale));
    if (const int64_t left = task.v_dim - i; left > 0) {
      const F sums = mul(load_f_tail(out + i, left), keep);
      store_f_tail(out + i, mul(fma(load_f_tail(part + i, left), with, sums), scale), left);
    }
  }
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
