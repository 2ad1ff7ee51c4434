// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: 32 values, one half-precision scale, perhaps a minimum.
//
// The searched scale competes, after rounding to half precision, with the plain one that spans the
// largest value: so a block's error is never above that of the usual encoder.
#include "quant/quantize_blocks.h"
#include "quant/quantize_search_inl.h"

namespace kt::quant {
namespace {

using namespace search;

// The half-precision scale with the least error among the candidates.
template <class Levels>
uint16_t best_half_scale(const Run& run, std::initializer_list<float> candidates) {
  uint16_t best = 0;
  float best_error = INFINITY;
  for (const float candidate : candidates) {
    const uint16_t half = float_to_half(candidate);
    const float error = scale_error<Levels>(run, half_to_float(half));
    if (error < best_error) best_error = error, best = half;
  }
  return best;
}

float signed_extreme(const Run& run) {
  float extreme = 0;
  for (int i = 0; i < run.n; ++i)
    if (std::fabs(run.x[i]) > std::fabs(extreme)) extreme = run.x[i];
  return extreme;
}

// 32 integers 0..15 or 0..31 -> nibbles, and the fifth bits where there are any.
void put_nibbles(const int* q, uint8_t* low, uint8_t* high) {
  for (int j = 0; j < 16; ++j) low[j] = (uint8_t)((q[j] & 15) | (q[j + 16] & 15) << 4);
  for (int i = 0; high && i < 4; ++i) high[i] = 0;
  for (int i = 0; high && i < 32; ++i) high[i / 8] |= (uint8_t)(q[i] >> 4 << (i % 8));
}

// Q4_0 and Q5_0: levels -half .. half - 1.
template <int kHalf>
uint16_t put_symmetric(const Run& run, const Starts& starts, uint8_t* low, uint8_t* high) {
  using Levels = Integers<-kHalf, kHalf - 1>;
  const float extreme = signed_extreme(run);
  const uint16_t d = best_half_scale<Levels>(
      run, {fit_scale<Levels>(run, starts), extreme / (float)-kHalf, extreme / (float)(kHalf - 1)});
  const float inverted = inverse(half_to_float(d));
  int q[32];
  for (int i = 0; i < 32; ++i) q[i] = (int)Levels::nearest(run.x[i] * inverted) + kHalf;
  put_nibbles(q, low, high);
  return d;
}

struct HalfLine {
  uint16_t d = 0, m = 0;
  Line line() const { return {half_to_float(d), half_to_float(m)}; }
};

// The best pair of half-precision scale and minimum: the searched line and the plain one, and for
// either scale, once it is rounded, the minimum that suits it best.
HalfLine best_half_line(const Run& run, int levels, const Starts& starts) {
  const float low = *std::min_element(run.x, run.x + run.n);
  const float high = *std::max_element(run.x, run.x + run.n);
  const Line lines[] = {fit_line(run, levels, starts, Minimum::kAny),
                        {(high - low) / (float)levels, low}};
  HalfLine best;
  float best_error = INFINITY;
  const auto consider = [&](float d, float m) {
    const HalfLine candidate{float_to_half(d), float_to_half(m)};
    const float error = line_error(run, candidate.line(), levels);
    if (error < best_error) best_error = error, best = candidate;
  };
  for (const Line& line : lines) {
    consider(line.a, line.b);
    const Line rounded{half_to_float(float_to_half(line.a)), line.b};
    const LineSums s = line_sums(run, rounded, levels);
    consider(rounded.a, rounded.b + (float)((s.x - rounded.a * s.q) / s.w));
  }
  return best;
}

HalfLine put_line(const Run& run, int levels, const Starts& starts, uint8_t* low, uint8_t* high) {
  const HalfLine best = best_half_line(run, levels, starts);
  const Line line = best.line();
  const float inverted = inverse(line.a);
  int q[32];
  for (int i = 0; i < 32; ++i) q[i] = (int)line_integer(run.x[i], line.b, inverted, levels);
  put_nibbles(q, low, high);
  return best;
}

}  // namespace

void quantize_block(const float* x, const float* w, Q4_0::Block* block) {
  block->d = put_symmetric<8>({x, w, 32}, {5, 11, 0.5f}, block->qs, nullptr);
}

void quantize_block(const float* x, const float* w, Q5_0::Block* block) {
  block->d = put_symmetric<16>({x, w, 32}, {13, 19, 0.5f}, block->qs, block->qh);
}

void quantize_block(const float* x, const float* w, Q4_1::Block* block) {
  const HalfLine best = put_line({x, w, 32}, 15, {12, 20, 0.5f}, block->qs, nullptr);
  block->d = best.d;
  block->m = best.m;
}

void quantize_block(const float* x, const float* w, Q5_1::Block* block) {
  const HalfLine best = put_line({x, w, 32}, 31, {28, 36, 0.5f}, block->qs, block->qh);
  block->d = best.d;
  block->m = best.m;
}

// -128 is left out: some readers of the format negate the integers in eight bits.
void quantize_block(const float* x, const float* w, Q8_0::Block* block) {
  using Levels = Integers<-127, 127>;
  const Run run{x, w, 32};
  block->d = best_half_scale<Levels>(
      run, {fit_scale<Levels>(run, {125, 128, 0.5f}), largest_magnitude(run) / 127});
  const float inverted = inverse(half_to_float(block->d));
  for (int i = 0; i < 32; ++i) block->qs[i] = (int8_t)Levels::nearest(x[i] * inverted);
}

}  // namespace kt::quant
