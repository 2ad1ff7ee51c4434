// Q3_K, Q6_K, IQ4_XS: 256 values in groups, value = (d * s) * level with a small signed integer s
// per group and a half-precision d.
//
// 1. The best scale of every group for itself.
// 2. The step d whose multiples come nearest to those scales, a group counting by how much an error
//    of its scale costs.
// 3. With d as half precision holds it: every s moves to a neighbour while the true error falls;
//    then d is fitted again to all 256 values; until nothing improves.
#include "quant/quantize_blocks.h"
#include "quant/quantize_levels_inl.h"

namespace kt::quant {
namespace {

using namespace search;

template <int kGroups>
struct NestedScales {
  uint16_t d = 0;
  int s[kGroups] = {};
};

template <class Levels, int kGroups, int kLow, int kHigh>
class NestedScaleSearch {
 public:
  NestedScaleSearch(const float* x, const float* w) : run_{x, w, 256} {}

  NestedScales<kGroups> search(const Starts& starts) {
    float scale[kGroups], cost[kGroups];
    for (int g = 0; g < kGroups; ++g) {
      scale[g] = fit_scale<Levels>(group(g), starts);
      cost[g] = scale_sums<Levels>(group(g), inverse(scale[g])).qq;
    }
    NestedScales<kGroups> best;
    float best_error = set_step(fit_step(scale, cost, kGroups, kLow, kHigh), scale, &best);
    for (int round = 0; round < 3; ++round) {
      NestedScales<kGroups> next = best;
      const float error = set_step(fitted_step(best), nullptr, &next);
      if (!(error < best_error)) break;
      best_error = error;
      best = next;
    }
    return best;
  }

 private:
  static constexpr int kGroup = 256 / kGroups;
  Run run_;

  Run group(int g) const { return run_.part(g * kGroup, kGroup); }

  // Rounds the step, chooses every s (from `scale`, or from where it stood), returns the error.
  float set_step(float step, const float* scale, NestedScales<kGroups>* nested) const {
    nested->d = float_to_half(step);
    const float d = half_to_float(nested->d);
    float total = 0;
    for (int g = 0; g < kGroups; ++g) {
      int& s = nested->s[g];
      if (scale)
        s = (int)round_small(std::clamp(scale[g] * inverse(d), (float)kLow, (float)kHigh));
      float error = scale_error<Levels>(group(g), d * (float)s);
      for (const int direction : {-1, 1}) {
        while (s + direction >= kLow && s + direction <= kHigh) {
          const float moved = scale_error<Levels>(group(g), d * (float)(s + direction));
          if (!(moved < error)) break;
          error = moved;
          s += direction;
        }
      }
      total += error;
    }
    return total;
  }

  // The best d for the integers that `nested` gives.
  float fitted_step(const NestedScales<kGroups>& nested) const {
    const float d = half_to_float(nested.d);
    double xq = 0, qq = 0;
    for (int g = 0; g < kGroups; ++g) {
      const double s = nested.s[g];
      const ScaleSums sums = scale_sums<Levels>(group(g), inverse(d * (float)nested.s[g]));
      xq += s * sums.xq;
      qq += s * s * sums.qq;
    }
    return qq > 0 ? (float)(xq / qq) : 0.0f;
  }
};

}  // namespace

void quantize_block(const float* x, const float* w, Q3_K::Block* block) {
  using Levels = Integers<-4, 3>;
  const auto best = NestedScaleSearch<Levels, 16, -32, 31>(x, w).search({2, 6.5f, 0.25f});
  *block = {};
  block->d = best.d;
  for (int g = 0; g < 16; ++g) {
    const int s = best.s[g] + 32;
    block->scales[g % 8] |= (uint8_t)((s & 15) << (g / 8 * 4));
    block->scales[8 + g % 4] |= (uint8_t)(s >> 4 << (g / 4 * 2));
  }
  for (int i = 0; i < 256; ++i) {
    const float inverted = inverse(half_to_float(best.d) * (float)best.s[i / 16]);
    const int q = (int)Levels::nearest(x[i] * inverted) + 4;
    block->qs[i / 128 * 32 + i % 32] |= (uint8_t)((q & 3) << (i / 32 % 4 * 2));
    block->hmask[i % 32] |= (uint8_t)(q >> 2 << (i / 32));
  }
}

void quantize_block(const float* x, const float* w, Q6_K::Block* block) {
  using Levels = Integers<-32, 31>;
  const auto best = NestedScaleSearch<Levels, 16, -128, 127>(x, w).search({28, 35, 0.5f});
  *block = {};
  block->d = best.d;
  for (int g = 0; g < 16; ++g) block->scales[g] = (int8_t)best.s[g];
  for (int i = 0; i < 256; ++i) {
    const float inverted = inverse(half_to_float(best.d) * (float)best.s[i / 16]);
    const int q = (int)Levels::nearest(x[i] * inverted) + 32;
    const int h = i / 128, p = i / 32 % 4, j = i % 32;
    block->ql[64 * h + 32 * (p % 2) + j] |= (uint8_t)((q & 15) << (p / 2 * 4));
    block->qh[32 * h + j] |= (uint8_t)(q >> 4 << (2 * p));
  }
}

void quantize_block(const float* x, const float* w, IQ4_XS::Block* block) {
  const auto best = NestedScaleSearch<Iq4Levels, 8, -32, 31>(x, w).search({95, 165, 5});
  *block = {};
  block->d = best.d;
  for (int g = 0; g < 8; ++g) {
    const int s = best.s[g] + 32;
    block->scales_low[g / 2] |= (uint8_t)((s & 15) << (g % 2 * 4));
    block->scales_high |= (uint16_t)(s >> 4 << (2 * g));
  }
  for (int i = 0; i < 256; ++i) {
    const float inverted = inverse(half_to_float(best.d) * (float)best.s[i / 32]);
    const int code = Iq4Levels::code(x[i] * inverted);
    block->qs[i / 32 * 16 + i % 16] |= (uint8_t)(code << (i / 16 % 2 * 4));
  }
}

}  // namespace kt::quant
