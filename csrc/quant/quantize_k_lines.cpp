// Q2_K, Q4_K, Q5_K: 256 values in groups, value = (d * s) * q - (dmin * t) with small unsigned
// integers s and t per group and half-precision d and dmin.
//
// The way is that of quantize_k_scales.cpp, for two numbers at once: the best line of every group;
// steps d and dmin that suit them; every (s, t) moves to a neighbour while the true error falls; d
// and dmin are fitted again. A block whose values are all positive is also tried with dmin < 0.
#include <cstring>

#include "quant/quantize_blocks.h"
#include "quant/quantize_search_inl.h"

namespace kt::quant {
namespace {

using namespace search;

template <int kGroups>
struct NestedLines {
  uint16_t d = 0, dmin = 0;
  uint8_t s[kGroups] = {}, t[kGroups] = {};
  Line line(int g) const {
    return {half_to_float(d) * (float)s[g], -(half_to_float(dmin) * (float)t[g])};
  }
};

template <int kGroups, int kLevels, int kLargest>  // q in 0..kLevels; s and t in 0..kLargest
class NestedLineSearch {
 public:
  using Nested = NestedLines<kGroups>;

  NestedLineSearch(const float* x, const float* w) : run_{x, w, 256} {}

  Nested search(const Starts& starts) const {
    Nested best;
    float error = search(starts, Minimum::kNotPositive, &best);
    if (*std::min_element(run_.x, run_.x + run_.n) > 0) {
      Nested other;
      if (search(starts, Minimum::kNotNegative, &other) < error) return other;
    }
    return best;
  }

  /// The 256 integers.
  void integers(const Nested& nested, uint8_t* q) const {
    for (int i = 0; i < 256; ++i) {
      const Line line = nested.line(i / kGroup);
      q[i] = (uint8_t)line_integer(run_.x[i], line.b, inverse(line.a), kLevels);
    }
  }

 private:
  static constexpr int kGroup = 256 / kGroups;
  Run run_;

  Run group(int g) const { return run_.part(g * kGroup, kGroup); }

  float search(const Starts& starts, Minimum minimum, Nested* best) const {
    *best = initial(starts, minimum);
    float best_error = settle(best);
    for (int round = 0; round < 3; ++round) {
      Nested next = refitted(*best);
      const float error = settle(&next);
      if (!(error < best_error)) break;
      best_error = error;
      *best = next;
    }
    return best_error;
  }

  static uint8_t stored(float value, float step) {
    return (uint8_t)round_small(std::clamp(value * inverse(step), 0.0f, (float)kLargest));
  }

  // Every group's own line, brought to common steps. The minima are fitted after the scales have
  // been rounded, so that they make up for some of that.
  Nested initial(const Starts& starts, Minimum minimum) const {
    Nested nested;
    Line line[kGroups];
    float value[kGroups], cost[kGroups];
    for (int g = 0; g < kGroups; ++g) {
      line[g] = fit_line(group(g), kLevels, starts, minimum);
      value[g] = line[g].a;
      const LineSums sums = line_sums(group(g), line[g], kLevels);
      // What an error of the scale costs: a free minimum makes up for the mean of it.
      cost[g] = (float)(line[g].b == 0 ? sums.qq : sums.qq - sums.q * sums.q / sums.w);
    }
    nested.d = float_to_half(fit_step(value, cost, kGroups, 0, kLargest));
    const float d = half_to_float(nested.d);
    for (int g = 0; g < kGroups; ++g) {
      nested.s[g] = stored(line[g].a, d);
      const Line rounded{d * (float)nested.s[g], line[g].b};
      const LineSums sums = line_sums(group(g), rounded, kLevels);
      const float b = rounded.b + (float)((sums.x - rounded.a * sums.q) / sums.w);
      value[g] = minimum == Minimum::kNotPositive ? std::max(-b, 0.0f) : std::min(-b, 0.0f);
      cost[g] = (float)sums.w;
    }
    nested.dmin = float_to_half(fit_step(value, cost, kGroups, 0, kLargest));
    for (int g = 0; g < kGroups; ++g) nested.t[g] = stored(value[g], half_to_float(nested.dmin));
    return nested;
  }

  // Moves every (s, t) to the best of its eight neighbours until none is better; returns the error.
  float settle(Nested* nested) const {
    float total = 0;
    for (int g = 0; g < kGroups; ++g) {
      float error = line_error(group(g), nested->line(g), kLevels);
      for (bool moved = true; moved;) {
        moved = false;
        const int s = nested->s[g], t = nested->t[g];
        uint8_t best_s = nested->s[g], best_t = nested->t[g];
        for (int step = 0; step < 9; ++step) {
          const int s2 = s + step / 3 - 1, t2 = t + step % 3 - 1;
          if (step == 4 || s2 < 0 || t2 < 0 || s2 > kLargest || t2 > kLargest) continue;
          nested->s[g] = (uint8_t)s2;
          nested->t[g] = (uint8_t)t2;
          const float e = line_error(group(g), nested->line(g), kLevels);
          if (e < error) error = e, best_s = nested->s[g], best_t = nested->t[g], moved = true;
        }
        nested->s[g] = best_s;
        nested->t[g] = best_t;
      }
      total += error;
    }
    return total;
  }

  // The best d and dmin for the integers that `nested` gives.
  Nested refitted(const Nested& nested) const {
    double ss = 0, st = 0, tt = 0, xs = 0, xt = 0;  // normal equations of x = d * (s q) - dmin * t
    for (int g = 0; g < kGroups; ++g) {
      const Line line = nested.line(g);
      const LineSums sums = line_sums(group(g), line, kLevels);
      const double s = nested.s[g], t = nested.t[g];
      ss += s * s * sums.qq;
      st += s * t * sums.q;
      tt += t * t * sums.w;
      xs += s * (sums.xq + line.b * sums.q);
      xt += t * (sums.x + line.b * sums.w);
    }
    Nested next = nested;
    const double determinant = ss * tt - st * st;
    if (determinant > 1e-9 * ss * tt) {
      next.d = float_to_half((float)((xs * tt - xt * st) / determinant));
      next.dmin = float_to_half((float)((xs * st - xt * ss) / determinant));
    } else if (ss > 0) {
      next.d = float_to_half((float)(xs / ss));
    }
    return next;
  }
};

}  // namespace

void quantize_block(const float* x, const float* w, Q2_K::Block* block) {
  const NestedLineSearch<16, 3, 15> search(x, w);
  const auto best = search.search({2, 4.5f, 0.25f});
  uint8_t q[256];
  search.integers(best, q);
  *block = {};
  block->d = best.d;
  block->dmin = best.dmin;
  for (int g = 0; g < 16; ++g) block->scales[g] = (uint8_t)(best.s[g] | best.t[g] << 4);
  for (int i = 0; i < 256; ++i)
    block->qs[i / 128 * 32 + i % 32] |= (uint8_t)(q[i] << (i / 32 % 4 * 2));
}

void quantize_block(const float* x, const float* w, Q4_K::Block* block) {
  const NestedLineSearch<8, 15, 63> search(x, w);
  const auto best = search.search({12, 20, 1});
  uint8_t q[256];
  search.integers(best, q);
  *block = {};
  block->d = best.d;
  block->dmin = best.dmin;
  pack_k_scales(best.s, best.t, block->scales);
  for (int i = 0; i < 256; ++i)
    block->qs[i / 64 * 32 + i % 32] |= (uint8_t)(q[i] << (i / 32 % 2 * 4));
}

void quantize_block(const float* x, const float* w, Q5_K::Block* block) {
  const NestedLineSearch<8, 31, 63> search(x, w);
  const auto best = search.search({28, 36, 1});
  uint8_t q[256];
  search.integers(best, q);
  *block = {};
  block->d = best.d;
  block->dmin = best.dmin;
  pack_k_scales(best.s, best.t, block->scales);
  for (int i = 0; i < 256; ++i) {
    block->qs[i / 64 * 32 + i % 32] |= (uint8_t)((q[i] & 15) << (i / 32 % 2 * 4));
    block->qh[i % 32] |= (uint8_t)(q[i] >> 4 << (i / 32));
  }
}

}  // namespace kt::quant
