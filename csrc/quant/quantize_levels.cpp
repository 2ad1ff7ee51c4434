// IQ4_NL, MXFP4: 32 values, one scale, sixteen uneven levels. TQ1_0, TQ2_0: 256 values, one scale,
// ternary digits.
#include "quant/quantize_blocks.h"
#include "quant/quantize_levels_inl.h"

namespace kt::quant {
namespace {

using namespace search;
using Ternary = Integers<-1, 1>;

// Values that are ternary already keep their scale exactly: it is their largest magnitude.
uint16_t ternary_scale(const Run& run) {
  const uint16_t fitted = float_to_half(fit_scale<Ternary>(run, {0.75f, 4, 0.25f}));
  const uint16_t largest = float_to_half(largest_magnitude(run));
  return scale_error<Ternary>(run, half_to_float(fitted)) <
                 scale_error<Ternary>(run, half_to_float(largest))
             ? fitted
             : largest;
}

// The digits of a ternary block as 0, 1, 2.
void ternary_digits(const float* x, uint16_t d, uint8_t* digits) {
  const float inverted = inverse(half_to_float(d));
  for (int i = 0; i < 256; ++i) digits[i] = (uint8_t)((int)Ternary::nearest(x[i] * inverted) + 1);
}

// `digits` runs of `width` digits -> `width` bytes; the inverse of unpack_ternary.
void put_ternary(const uint8_t* u, int width, int digits, uint8_t* bytes) {
  for (int j = 0; j < width; ++j) {
    int number = 0;
    for (int n = 0; n < 5; ++n) number = number * 3 + (n < digits ? u[n * width + j] : 0);
    bytes[j] = (uint8_t)((number * 256 + 242) / 243);
  }
}

}  // namespace

void quantize_block(const float* x, const float* w, IQ4_NL::Block* block) {
  const Run run{x, w, 32};
  *block = {};
  block->d = float_to_half(fit_scale<Iq4Levels>(run, {95, 165, 5}));
  const float inverted = inverse(half_to_float(block->d));
  for (int i = 0; i < 32; ++i)
    block->qs[i % 16] |= (uint8_t)(Iq4Levels::code(x[i] * inverted) << (i / 16 * 4));
}

// Of the powers of two near the one that just spans the largest value, the one with least error.
void quantize_block(const float* x, const float* w, MXFP4::Block* block) {
  const Run run{x, w, 32};
  const float largest = largest_magnitude(run);
  *block = {};
  if (largest > 0) {
    const int spanning = std::ilogb(largest) - 2 + 127;
    float best_error = INFINITY;
    for (int e = std::max(spanning - 1, 0); e <= std::max(spanning + 1, 0); ++e) {
      const float error = scale_error<Fp4Levels>(run, half_e8m0((uint8_t)e));
      if (error < best_error) best_error = error, block->e = (uint8_t)e;
    }
  }
  const float inverted = inverse(half_e8m0(block->e));
  for (int i = 0; i < 32; ++i)
    block->qs[i % 16] |= (uint8_t)(Fp4Levels::code(x[i] * inverted) << (i / 16 * 4));
}

void quantize_block(const float* x, const float* w, TQ1_0::Block* block) {
  uint8_t digits[256];
  block->d = ternary_scale({x, w, 256});
  ternary_digits(x, block->d, digits);
  put_ternary(digits, 32, 5, block->qs);
  put_ternary(digits + 160, 16, 5, block->qs + 32);
  put_ternary(digits + 240, 4, 4, block->qs + 48);
}

void quantize_block(const float* x, const float* w, TQ2_0::Block* block) {
  uint8_t digits[256];
  *block = {};
  block->d = ternary_scale({x, w, 256});
  ternary_digits(x, block->d, digits);
  for (int i = 0; i < 256; ++i)
    block->qs[i / 128 * 32 + i % 32] |= (uint8_t)(digits[i] << (i / 32 % 4 * 2));
}

}  // namespace kt::quant
