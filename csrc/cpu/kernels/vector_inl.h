// Row-wise float work: norms, gated activation, sums, and conversion to the cache's element types.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/kernels/simd_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

KT_INLINE float dot_floats(const float* a, const float* b, int64_t n) {
  F even = zero_f(), odd = zero_f();
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    even = fma(load_f(a + i), load_f(b + i), even);
    odd = fma(load_f(a + i + 16), load_f(b + i + 16), odd);
  }
  for (; i + 16 <= n; i += 16) even = fma(load_f(a + i), load_f(b + i), even);
  if (i < n) odd = fma(load_f_tail(a + i, n - i), load_f_tail(b + i, n - i), odd);
  return reduce_add(add(even, odd));
}

static float dot(const float* a, const float* b, int64_t n) { return dot_floats(a, b, n); }

static void axpy(float a, const float* x, int64_t n, float* y) {
  const F factor = set_f(a);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store_f(y + i, fma(factor, load_f(x + i), load_f(y + i)));
  if (i < n)
    store_f_tail(y + i, fma(factor, load_f_tail(x + i, n - i), load_f_tail(y + i, n - i)), n - i);
}

static void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  const float mean = dot_floats(x, x, n) / (float)n;
  const F factor = set_f(1.0f / __builtin_sqrtf(mean + eps));
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    store_f(out + i, mul(load_f(weight + i), mul(load_f(x + i), factor)));
  if (i < n) {
    const F value = mul(load_f_tail(x + i, n - i), factor);
    store_f_tail(out + i, mul(load_f_tail(weight + i, n - i), value), n - i);
  }
}

// e^x for x <= 0 and down to -87 (below: 0), relative error below 2e-7: 2^n * 2^f with the
// fraction's exponential by a polynomial of degree 6 (Taylor of e^t, |t| <= ln2/2).
KT_INLINE F exp_f(F x) {
  const F floor_at = set_f(-87.3f), ceil_at = set_f(88.0f);
  const F clamped = min(max(x, floor_at), ceil_at);
  const F n = round_f(mul(clamped, set_f(1.44269504088896f)));
  // ln2 in two parts keeps t exact.
  F t = fma(n, set_f(-0.693359375f), clamped);
  t = fma(n, set_f(2.12194440e-4f), t);
  F p = set_f(1.0f / 720.0f);
  p = fma(p, t, set_f(1.0f / 120.0f));
  p = fma(p, t, set_f(1.0f / 24.0f));
  p = fma(p, t, set_f(1.0f / 6.0f));
  p = fma(p, t, set_f(0.5f));
  p = fma(p, t, set_f(1.0f));
  p = fma(p, t, set_f(1.0f));
  return mul(p, as_float(shl(add(to_int(n), set_i(127)), 23)));
}

// e^x, and 0 below -87 as well as for NaN.
KT_INLINE F exp_or_zero(F x) {
  return sub(exp_f(x), set_f(1.2157e-38f));  // e^-87.3, which is what exp_f gives there
}

KT_INLINE F load_some(const float* x, int64_t left, float rest) {
  if (left >= 16) return load_f(x);
  float lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = i < left ? x[i] : rest;
  return load_f(lanes);
}

static void softmax(const float* x, int64_t n, float* out) {
  const float none = -__builtin_inff();
  F best = set_f(none);
  for (int64_t i = 0; i < n; i += 16) best = max(load_some(x + i, n - i, none), best);
  const F top = set_f(reduce_max(best));
  F sum = zero_f();
  for (int64_t i = 0; i < n; i += 16) {
    const F e = exp_f(sub(load_some(x + i, n - i, none), top));
    if (n - i >= 16) {
      store_f(out + i, e);
      sum = add(sum, e);
    } else {
      store_f_tail(out + i, e, n - i);
      sum = add(sum, load_f_tail(out + i, n - i));
    }
  }
  const F factor = set_f(1.0f / reduce_add(sum));
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store_f(out + i, mul(load_f(out + i), factor));
  if (i < n) store_f_tail(out + i, mul(load_f_tail(out + i, n - i), factor), n - i);
}

static void sigmoid(const float* x, int64_t n, float* out) {
  const F one = set_f(1.0f);
  for (int64_t i = 0; i < n; i += 16) {
    const F value = div(one, add(one, exp_f(neg(load_some(x + i, n - i, 0.0f)))));
    if (n - i >= 16)
      store_f(out + i, value);
    else
      store_f_tail(out + i, value, n - i);
  }
}

// The operand order matters: where the first is NaN, the second is the result.
static void block_max(const float* x, int64_t n, float* out) {
  const float none = -__builtin_inff();
  for (int64_t start = 0; start < n; start += kScanBlock) {
    F best = set_f(none);
    for (int64_t i = start; i < start + kScanBlock && i < n; i += 16)
      best = max(load_some(x + i, n - i, none), best);
    out[start / kScanBlock] = reduce_max(best);
  }
}

static void block_exp_sum(const float* x, int64_t n, float top, float factor, float* out) {
  const F high = set_f(top), scale = set_f(factor);
  for (int64_t start = 0; start < n; start += kScanBlock) {
    F sum = zero_f();
    for (int64_t i = start; i < start + kScanBlock && i < n; i += 16) {
      const F value = load_some(x + i, n - i, -__builtin_inff());
      sum = add(sum, exp_or_zero(mul(sub(value, high), scale)));
    }
    out[start / kScanBlock] = reduce_add(sum);
  }
}

static void swiglu(const float* gate, const float* up, int64_t n, float* out) {
  const F one = set_f(1.0f);
  for (int64_t i = 0; i < n; i += 16) {
    const bool whole = i + 16 <= n;
    const F g = whole ? load_f(gate + i) : load_f_tail(gate + i, n - i);
    const F u = whole ? load_f(up + i) : load_f_tail(up + i, n - i);
    const F value = mul(div(g, add(one, exp_f(neg(g)))), u);
    if (whole)
      store_f(out + i, value);
    else
      store_f_tail(out + i, value, n - i);
  }
}

static void store_kv(const float* x, int64_t n, KvType type, uint8_t* out) {
  int64_t i = 0;
  switch (type) {
    case KvType::kF32:
      memcpy(out, x, (size_t)n * sizeof(float));
      return;
    case KvType::kF16: {
      uint16_t* half = (uint16_t*)out;
      for (; i + 16 <= n; i += 16) store_half(half + i, load_f(x + i));
      for (; i < n; ++i) half[i] = float_to_half(x[i]);
      return;
    }
    case KvType::kBF16: {
      uint16_t* bits = (uint16_t*)out;
      for (; i < n; ++i) bits[i] = float_to_bf16(x[i]);
      return;
    }
    case KvType::kQ8_0:
      // Blocks as in the Q8_0 weight format: binary16 scale, then 32 signed bytes.
      for (; i < n; i += 32, out += 34) {
        const F a = load_f(x + i), b = load_f(x + i + 16);
        const float top = reduce_max(max(max(a, neg(a)), max(b, neg(b))));
        const float scale = top / 127.0f;
        const uint16_t half = float_to_half(scale);
        const F inverse = set_f(scale > 0.0f ? 1.0f / scale : 0.0f);
        int32_t q[32];
        store_i(q, to_int(mul(a, inverse)));
        store_i(q + 16, to_int(mul(b, inverse)));
        memcpy(out, &half, 2);
        for (int j = 0; j < 32; ++j) out[2 + j] = (uint8_t)(int8_t)q[j];
      }
      return;
    case KvType::kI16:
      return;  // not in rows
  }
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
