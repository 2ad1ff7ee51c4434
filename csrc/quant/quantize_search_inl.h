// The searches behind the quantizers: which scale (and minimum) lets a few integers stand for a run
// of values with the least weighted squared error
//
//     sum over i of w[i] * (x[i] - a * q[i] - b)^2.
//
// For given integers the best a and b are a linear least-squares problem; for given a and b the
// best integers are the nearest ones. Alternating the two never increases the error but stops at
// the next local minimum, so it is started from several scales: from some that clip the largest
// values (good for normal and heavy-tailed values) to some that leave the outer integers unused
// (exact for values that already are on a coarser grid).
//
// Sums are kept in kLanes partial sums because the compiler may not reorder float additions itself;
// every run is a multiple of kLanes values long. Private to the quantize_*.cpp files.
#pragma once

#include <algorithm>
#include <cmath>

#include "quant/integer_view.h"

namespace kt::quant::search {

constexpr int kLanes = 8;

/// A run of values and their weights; n is a multiple of kLanes.
struct Run {
  const float* x;
  const float* w;
  int n;

  Run part(int first, int count) const { return {x + first, w + first, count}; }
};

inline float sum_lanes(const float* lanes) {
  float sum = 0;
  for (int l = 0; l < kLanes; ++l) sum += lanes[l];
  return sum;
}

/// 1 / a, or 0 where that is not a finite number: every value then goes to the level nearest to 0.
inline float inverse(float a) {
  const float inverted = 1.0f / a;
  return std::isfinite(inverted) ? inverted : 0.0f;
}

/// Nearest integer of |y| < 2^22, ties to even, in two additions that vectorise.
inline float round_small(float y) { return (y + 12582912.0f) - 12582912.0f; }

/// Consecutive integers kLow..kHigh.
template <int kLow, int kHigh>
struct Integers {
  static constexpr bool kMirrored = kLow == -kHigh;  // -level is a level too
  static constexpr float kLargest = -kLow > kHigh ? -kLow : kHigh;
  static float nearest(float y) {
    return round_small(std::min(std::max(y, (float)kLow), (float)kHigh));
  }
};

/// What least squares needs for x = a * q.
struct ScaleSums {
  float xq, qq;
  float scale() const { return qq > 0 ? xq / qq : 0.0f; }
  float gain() const { return qq > 0 ? xq * xq / qq : 0.0f; }  // how far below sum(w x^2) it gets
};

template <class Levels>
ScaleSums scale_sums(const Run& run, float inverse_scale) {
  float xq[kLanes] = {}, qq[kLanes] = {};
  for (int i = 0; i < run.n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      const float q = Levels::nearest(run.x[i + l] * inverse_scale);
      const float wq = run.w[i + l] * q;
      xq[l] += wq * run.x[i + l];
      qq[l] += wq * q;
    }
  }
  return {sum_lanes(xq), sum_lanes(qq)};
}

/// The error of x = a * nearest level.
template <class Levels>
float scale_error(const Run& run, float a) {
  const float inverted = inverse(a);
  float error[kLanes] = {};
  for (int i = 0; i < run.n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      const float rest = run.x[i + l] - a * Levels::nearest(run.x[i + l] * inverted);
      error[l] += run.w[i + l] * rest * rest;
    }
  }
  return sum_lanes(error);
}

inline float largest_magnitude(const Run& run) {
  float largest = 0;
  for (int i = 0; i < run.n; ++i) largest = std::max(largest, std::fabs(run.x[i]));
  return largest;
}

/// Where a search starts: the largest magnitude is placed at first, first + step, ... last, in
/// units of the scale. Placing it beyond the largest level means clipping it.
struct Starts {
  float first, last, step;
};

/// The scale a with the least error of x = a * level; 0 if every x is 0.
template <class Levels>
float fit_scale(const Run& run, const Starts& starts) {
  const float largest = largest_magnitude(run);
  const float unit = inverse(largest);
  if (unit == 0) return 0;
  float best_gain = -1, best = 0;
  for (float at = starts.first; at <= starts.last; at += starts.step) {
    for (int sign = -1; sign <= (Levels::kMirrored ? -1 : 1); sign += 2) {
      const ScaleSums sums = scale_sums<Levels>(run, (float)sign * at * unit);
      if (sums.gain() > best_gain) best_gain = sums.gain(), best = sums.scale();
    }
  }
  for (int round = 0; round < 4; ++round) {
    const ScaleSums sums = scale_sums<Levels>(run, inverse(best));
    if (!(sums.gain() > best_gain)) break;
    best_gain = sums.gain(), best = sums.scale();
  }
  return best;
}

/// x = a * q + b with q in 0..levels.
struct Line {
  float a = 0, b = 0;
};

inline float line_integer(float x, float b, float inverse_scale, int levels) {
  return round_small(std::min(std::max((x - b) * inverse_scale, 0.0f), (float)levels));
}

inline float line_error(const Run& run, const Line& line, int levels) {
  const float inverted = inverse(line.a);
  float error[kLanes] = {};
  for (int i = 0; i < run.n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      const float x = run.x[i + l];
      const float rest = x - line.a * line_integer(x, line.b, inverted, levels) - line.b;
      error[l] += run.w[i + l] * rest * rest;
    }
  }
  return sum_lanes(error);
}

/// What least squares needs for x = a * q + b.
struct LineSums {
  double w, q, qq, x, xq;
};

inline LineSums line_sums(const Run& run, const Line& line, int levels) {
  const float inverted = inverse(line.a);
  float w[kLanes] = {}, wq[kLanes] = {}, wqq[kLanes] = {}, wx[kLanes] = {}, wxq[kLanes] = {};
  for (int i = 0; i < run.n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      const float x = run.x[i + l];
      const float q = line_integer(x, line.b, inverted, levels);
      const float weighted = run.w[i + l] * q;
      w[l] += run.w[i + l];
      wq[l] += weighted;
      wqq[l] += weighted * q;
      wx[l] += run.w[i + l] * (x - line.b);  // from b, so that a large offset costs no digits
      wxq[l] += weighted * (x - line.b);
    }
  }
  return {sum_lanes(w), sum_lanes(wq), sum_lanes(wqq), sum_lanes(wx), sum_lanes(wxq)};
}

/// Which signs b may have: K-quants store a common sign for all minima of a block.
enum class Minimum { kAny, kNotPositive, kNotNegative };

/// The least-squares line for the integers that `line` gives.
inline Line refit(const Run& run, const Line& line, int levels, Minimum minimum) {
  const LineSums s = line_sums(run, line, levels);
  const double determinant = s.w * s.qq - s.q * s.q;
  Line fitted = line;
  if (determinant > 1e-9 * s.w * s.qq) {
    const double a = (s.w * s.xq - s.x * s.q) / determinant;
    fitted = {(float)a, (float)(line.b + (s.x - a * s.q) / s.w)};
  }
  const bool refused = (minimum == Minimum::kNotPositive && fitted.b > 0) ||
                       (minimum == Minimum::kNotNegative && fitted.b < 0);
  if (refused) fitted = {s.qq > 0 ? (float)((s.xq + line.b * s.q) / s.qq) : 0.0f, 0.0f};
  return fitted;
}

/// The line with the least error, a >= 0; starts place the spread max - min.
inline Line fit_line(const Run& run, int levels, const Starts& starts, Minimum minimum) {
  float low = *std::min_element(run.x, run.x + run.n);
  float high = *std::max_element(run.x, run.x + run.n);
  if (minimum == Minimum::kNotPositive) low = std::min(low, 0.0f);
  if (minimum == Minimum::kNotNegative) low = std::max(low, 0.0f), high = std::max(high, low);
  Line best{0, low};
  float best_error = line_error(run, best, levels);
  for (float at = starts.first; at <= starts.last; at += starts.step) {
    Line line{(high - low) / at, low};
    if (at > (float)levels) line.b += (high - low - line.a * (float)levels) / 2;  // clip both ends
    if (minimum == Minimum::kNotPositive) line.b = std::min(line.b, 0.0f);
    for (int round = 0; round < 4; ++round) {
      const float error = line_error(run, line, levels);
      if (error < best_error) best_error = error, best = line;
      const Line fitted = refit(run, line, levels, minimum);
      if (!(fitted.a > 0) || (fitted.a == line.a && fitted.b == line.b)) break;
      line = fitted;
    }
  }
  return best;
}

/// The step d with which a few stored integers low..high, times d, come nearest to `values`, each
/// of which counts with its weight.
inline float fit_step(const float* values, const float* weights, int n, int low, int high) {
  float extreme = 0;
  for (int i = 0; i < n; ++i)
    if (std::fabs(values[i]) > std::fabs(extreme)) extreme = values[i];
  if (extreme == 0) return 0;
  float best_error = INFINITY, best = 0;
  const auto try_step = [&](float step) {
    float vs = 0, ss = 0;
    const float inverted = inverse(step);
    const auto stored = [&](float v) {
      return round_small(std::min(std::max(v * inverted, (float)low), (float)high));
    };
    for (int i = 0; i < n; ++i) {
      const float s = stored(values[i]);
      vs += weights[i] * values[i] * s;
      ss += weights[i] * s * s;
    }
    if (!(ss > 0)) return;
    const float fitted = vs / ss;
    float error = 0;
    for (int i = 0; i < n; ++i) {
      const float rest = values[i] - fitted * stored(values[i]);
      error += weights[i] * rest * rest;
    }
    if (error < best_error) best_error = error, best = fitted;
  };
  for (const int edge : {high, low}) {
    for (int k = 0; edge != 0 && k <= 16; ++k)
      try_step(extreme / ((float)edge * (1.05f - 0.025f * (float)k)));
  }
  return best;
}

}  // namespace kt::quant::search
