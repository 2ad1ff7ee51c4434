// One block of values -> its bytes, for every format that has a quantizer. An overload here is all
// it takes: quantize.cpp and the Python list of formats look for it.
//
//   x, w    kValues values and the weights of their squared errors: finite, |x| <= 65504, w > 0
#pragma once

#include "quant/list.h"

namespace kt::quant {

// quantize_legacy.cpp
void quantize_block(const float* x, const float* w, Q4_0::Block* block);
void quantize_block(const float* x, const float* w, Q4_1::Block* block);
void quantize_block(const float* x, const float* w, Q5_0::Block* block);
void quantize_block(const float* x, const float* w, Q5_1::Block* block);
void quantize_block(const float* x, const float* w, Q8_0::Block* block);

// quantize_k_lines.cpp: scales and minima
void quantize_block(const float* x, const float* w, Q2_K::Block* block);
void quantize_block(const float* x, const float* w, Q4_K::Block* block);
void quantize_block(const float* x, const float* w, Q5_K::Block* block);

// quantize_k_scales.cpp: signed scales, no minima
void quantize_block(const float* x, const float* w, Q3_K::Block* block);
void quantize_block(const float* x, const float* w, Q6_K::Block* block);
void quantize_block(const float* x, const float* w, IQ4_XS::Block* block);

// quantize_levels.cpp: uneven levels and ternary digits
void quantize_block(const float* x, const float* w, IQ4_NL::Block* block);
void quantize_block(const float* x, const float* w, MXFP4::Block* block);
void quantize_block(const float* x, const float* w, TQ1_0::Block* block);
void quantize_block(const float* x, const float* w, TQ2_0::Block* block);

/// Whether a format can be written: plain floats, and those with a quantize_block.
template <class F>
constexpr bool kCanQuantize =
    F::kGroup == 0 ||
    requires(const float* x, typename F::Block* block) { quantize_block(x, x, block); };

}  // namespace kt::quant
