// gemv_record of the K-quants: blocks of 256 values with two levels of scales, in groups of 32 (Q4_K,
// Q5_K) or 16 (Q2_K, Q3_K, Q6_K).
#pragma once

#include "cpu/kernels/halves_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

#if defined(KT_HAS_GEMV)

// Q4_K and Q5_K: eight scales and minima; those of odd groups times `odd`.
struct KHead {
  alignas(64) float scale[8][16];
  alignas(64) float min[8][16];
};

template <class Q>
KT_INLINE void load_k_head(const uint8_t* record, KHead& head, float odd) {
  const I first = word<Q>(record, 0);
  const F d = half_lanes(first), dmin = neg(half_lanes(shr(first, 16)));
  const F d_odd = mul(d, set_f(odd));
  const I s = word<Q>(record, 1), t = word<Q>(record, 2), both = word<Q>(record, 3);
  const I six = set_i(63), four = set_i(15), top = set_i(0x30);
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    const I byte = shr(both, 8 * g);
    const I s_high = bor(band(byte, four), band(shr(s, 8 * g + 2), top));
    const I t_high = bor(band(shr(byte, 4), four), band(shr(t, 8 * g + 2), top));
    store_f(head.scale[g], mul(g % 2 ? d_odd : d, to_float(band(shr(s, 8 * g), six))));
    store_f(head.scale[g + 4], mul(g % 2 ? d_odd : d, to_float(s_high)));
    store_f(head.min[g], mul(dmin, to_float(band(shr(t, 8 * g), six))));
    store_f(head.min[g + 4], mul(dmin, to_float(t_high)));
  }
}

// Two groups of 32 side by side, a step giving four values of each; with minima.
template <int T, class Step>
KT_INLINE void two_groups(const KHead& head, int c, const ActBlock* const* x, F* total, Step step) {
  Acc a[T], b[T];
  const ActBlock* y[T];
  KT_TOKENS {
    a[t] = b[t] = acc_from(0);
    y[t] = x[t] + 2 * c;
  }
#pragma GCC unroll 2
  for (int j = 0; j < 8; ++j) {
    I u, v;
    step(j, u, v);
    KT_TOKENS {
      mac(a[t], u, y[t], 4 * j);
      mac(b[t], v, y[t] + 1, 4 * j);
    }
  }
  const F scale_a = load_f(head.scale[2 * c]), scale_b = load_f(head.scale[2 * c + 1]);
  const F min_a = load_f(head.min[2 * c]), min_b = load_f(head.min[2 * c + 1]);
  KT_TOKENS {
    total[t] = add_dot(total[t], acc_sum(a[t]), y[t], scale_a);
    total[t] = add_min(total[t], y[t], min_a);
    total[t] = add_dot(total[t], acc_sum(b[t]), y[t] + 1, scale_b);
    total[t] = add_min(total[t], y[t] + 1, min_b);
  }
}

template <int T>
KT_INLINE void gemv_record(quant::Q4_K, const uint8_t* record, const ActBlock* const* x, F* total) {
  using Q = quant::Q4_K;
  KHead head;
  load_k_head<Q>(record, head, 1.0f / 16);
  const uint8_t* p = quant::r16_word<Q>(record, 4);
  const I low = bytes_of(0x0F), high = bytes_of(0xF0);
#pragma GCC unroll 1
  for (int c = 0; c < 4; ++c, p += 512) {
    two_groups<T>(head, c, x, total, [&](int j, I& u, I& v) {
      const I w = take_line<T>(p + 64 * j);
      u = band(w, low);
      v = band(w, high);
    });
  }
}

template <int T>
KT_INLINE void gemv_record(quant::Q5_K, const uint8_t* record, const ActBlock* const* x, F* total) {
  using Q = quant::Q5_K;
  KHead head;
  load_k_head<Q>(record, head, 1.0f / 8);
  const I low = bytes_of(0x0F), low_five = bytes_of(0x1F), high = bytes_of(0x78),
          high_five = bytes_of(0xF8);
#pragma GCC unroll 1
  for (int c = 0; c < 4; ++c) {
    const uint8_t* bits = quant::r16_word<Q>(record, 4);
    const uint8_t* p = bits + (c == 0 ? 64 : 512 * c + 512);
    const int stride = c == 0 ? 128 : 64;
    // Bit 2 c of a byte goes to bit 4, bit 2 c + 1 to bit 7: the high nibble is used in eighths.
    const I to_four = set_i(4 - 2 * c), to_seven = set_i(6 - 2 * c);
    two_groups<T>(head, c, x, total, [&](int j, I& u, I& v) {
      const I q = load_i(bits + 128 * j), w = take_line<T>(p + stride * j);
      u = band(select(low, w, rotate(q, to_four)), low_five);
      v = band(select(high, shr(w, 1), rotate(q, to_seven)), high_five);
    });
  }
}

// Four runs of 32 values, 128 in all, each with two groups of 16; a step gives four values of each
// run. dot[half][run][token] are the groups' sums, which begin with start[run] * sum of the values.
template <int T>
struct Runs {
  I dot[2][4][T];
};

template <int T, class Step>
KT_INLINE void four_runs(const ActBlock* const* y, const int32_t (&start)[4], Runs<T>& runs,
                         Step step) {
#pragma GCC unroll 1
  for (int half = 0; half < 2; ++half) {
    Acc a[4][T];
    KT_TOKENS {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) a[v][t] = acc_from(start[v] * y[t][v].sum[half]);
    }
#pragma GCC unroll 1
    for (int j = 4 * half; j < 4 * half + 4; ++j) {
      I u[4];
      step(j, u);
      KT_TOKENS {
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) mac(a[v][t], u[v], y[t] + v, 4 * j);
      }
    }
    KT_TOKENS {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) runs.dot[half][v][t] = acc_sum(a[v][t]);
    }
  }
}

template <int T>
KT_INLINE void add_runs(const Runs<T>& runs, const ActBlock* const* y, const float (*scale)[16],
                        F* total) {
  KT_TOKENS {
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g)
      total[t] = add_dot(total[t], runs.dot[g % 2][g / 2][t], y[t] + g / 2, load_f(scale[g]));
  }
}

template <int T>
KT_INLINE void gemv_record(quant::Q6_K, const uint8_t* record, const ActBlock* const* x, F* total) {
  using Q = quant::Q6_K;
  alignas(64) float scale[16][16];
  const F d = head_halves(record), quarter = mul(d, set_f(0.25f));
#pragma GCC unroll 16
  for (int g = 0; g < 16; ++g)
    store_f(scale[g], mul(g / 2 % 4 == 3 ? quarter : d,
                          to_float(signed_byte(word<Q>(record, 48 + g / 4), g % 4))));
  const I four = bytes_of(0x0F), six = bytes_of(0x3F), in_place = bytes_of(0xFC);
  const int32_t start[4] = {-32, -32, -32, -128};  // the last run is used in quarters
  const uint8_t* p = quant::r16_word<Q>(record, 0);
  Runs<T> runs;
#pragma GCC unroll 1
  for (int h = 0; h < 2; ++h, p += 24 * 64) {
    const ActBlock* y[T];
    KT_TOKENS y[t] = x[t] + 4 * h;
    four_runs<T>(y, start, runs, [&](int j, I* u) {
      const uint8_t* three = p + 192 * j;
      const I even = take_line<T>(three), odd = take_line<T>(three + 64);
      const I q = take_line<T>(three + 128);
      u[0] = band(select(four, even, shl(q, 4)), six);
      u[1] = band(select(four, odd, shl(q, 2)), six);
      u[2] = band(select(four, shr(even, 4), q), six);
      u[3] = band(select(six, shr(odd, 2), q), in_place);
    });
    add_runs<T>(runs, y, scale + 8 * h, total);
  }
}

template <int T>
KT_INLINE void gemv_record(quant::Q2_K, const uint8_t* record, const ActBlock* const* x, F* total) {
  using Q = quant::Q2_K;
  alignas(64) float scale[16][16], min[16][16];
  const I head = word<Q>(record, 20);
  const F d = half_lanes(head), dmin = neg(half_lanes(shr(head, 16)));
  const F in_place[4] = {d, mul(d, set_f(1.0f / 4)), mul(d, set_f(1.0f / 16)),
                         mul(d, set_f(1.0f / 64))};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const I w = word<Q>(record, i);
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
      const int g = 4 * i + b;
      store_f(scale[g], mul(in_place[g / 2 % 4], to_float(band(shr(w, 8 * b), set_i(15)))));
      store_f(min[g], mul(dmin, to_float(band(shr(w, 8 * b + 4), set_i(15)))));
    }
  }
  const int32_t start[4] = {0, 0, 0, 0};
  const I bits[4] = {bytes_of(0x03), bytes_of(0x0C), bytes_of(0x30), bytes_of(0xC0)};
  const uint8_t* p = quant::r16_word<Q>(record, 4);
  Runs<T> runs;
#pragma GCC unroll 1
  for (int h = 0; h < 2; ++h, p += 512) {
    const ActBlock* y[T];
    KT_TOKENS y[t] = x[t] + 4 * h;
    four_runs<T>(y, start, runs, [&](int j, I* u) {
      const I w = take_line<T>(p + 64 * j);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) u[v] = band(w, bits[v]);
    });
    KT_TOKENS {
#pragma GCC unroll 8
      for (int g = 0; g < 8; ++g) {
        const ActBlock* z = y[t] + g / 2;
        total[t] = add_dot(total[t], runs.dot[g % 2][g / 2][t], z, load_f(scale[8 * h + g]));
        total[t] = fma(load_f(min[8 * h + g]), set_f(z->scale * (float)z->sum[g % 2]), total[t]);
      }
    }
  }
}

template <int T>
KT_INLINE void gemv_record(quant::Q3_K, const uint8_t* record, const ActBlock* const* x, F* total) {
  using Q = quant::Q3_K;
  alignas(64) float scale[16][16];
  const F d = head_halves(record);
  const F in_place[4] = {d, mul(d, set_f(1.0f / 4)), mul(d, set_f(1.0f / 16)),
                         mul(d, set_f(1.0f / 16))};
  // Six-bit scales as bytes, four groups a word: low nibbles, and two bits of the last word.
  const I low[2] = {word<Q>(record, 24), word<Q>(record, 25)}, high = word<Q>(record, 26);
  const I nibble = bytes_of(0x0F), two = bytes_of(0x30);
  const I six[4] = {bor(band(low[0], nibble), band(shl(high, 4), two)),
                    bor(band(low[1], nibble), band(shl(high, 2), two)),
                    bor(band(shr(low[0], 4), nibble), band(high, two)),
                    bor(band(shr(low[1], 4), nibble), band(shr(high, 2), two))};
#pragma GCC unroll 16
  for (int g = 0; g < 16; ++g) {
    const I s = add(unsigned_byte(six[g / 4], g % 4), set_i(-32));
    store_f(scale[g], mul(in_place[g / 2 % 4], to_float(s)));
  }
  const int32_t start[4] = {-4, -16, -64, -64};  // runs are used times 1, 4, 16 and 16
  const I low_bits[4] = {bytes_of(0x03), bytes_of(0x0C), bytes_of(0x30), bytes_of(0x30)};
  const I all_bits[4] = {bytes_of(0x07), bytes_of(0x1C), bytes_of(0x70), bytes_of(0x70)};
  Runs<T> runs;
#pragma GCC unroll 1
  for (int h = 0; h < 2; ++h) {
    // Third bits: bit 4 h + v of a byte goes above the low bits.
    const I turn[4] = {set_i(2 - 4 * h), set_i(3 - 4 * h), set_i(4 - 4 * h), set_i(3 - 4 * h)};
    const uint8_t* thirds = quant::r16_word<Q>(record, 0);
    const uint8_t* p = thirds + (h == 0 ? 64 : 1024);
    const int stride = h == 0 ? 128 : 64;
    const ActBlock* y[T];
    KT_TOKENS y[t] = x[t] + 4 * h;
    four_runs<T>(y, start, runs, [&](int j, I* u) {
      const I q = load_i(thirds + 128 * j), w = take_line<T>(p + stride * j);
      const I shifted = shr(w, 2);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v)
        u[v] = band(select(low_bits[v], v == 3 ? shifted : w, rotate(q, turn[v])), all_bits[v]);
    });
    add_runs<T>(runs, y, scale + 8 * h, total);
  }
}

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
