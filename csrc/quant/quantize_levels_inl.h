// Uneven level sets for the searches of quantize_search_inl.h, and the codes that stand for them.
#pragma once

#include "quant/list.h"
#include "quant/quantize_search_inl.h"

namespace kt::quant::search {

/// The sixteen levels of IQ4_NL and IQ4_XS.
struct Iq4Levels {
  static constexpr bool kMirrored = false;
  static constexpr float kLargest = 127;
  static constexpr float level(int code) { return (float)kIq4Levels[code] - IQ4_NL::kOffset; }
  static float nearest(float y) {
    float nearest = level(0);
    for (int code = 1; code < 16; ++code)
      nearest = y > (level(code - 1) + level(code)) / 2 ? level(code) : nearest;
    return nearest;
  }
  static int code(float y) {
    int code = 0;
    while (code < 15 && y > (level(code) + level(code + 1)) / 2) ++code;
    return code;
  }
};

/// Twice the values of E2M1: 0, 1, 2, 3, 4, 6, 8, 12 and their negatives.
struct Fp4Levels {
  static constexpr bool kMirrored = true;
  static constexpr float kLargest = 12;
  static constexpr float level(int code) { return (float)kFp4Levels[code] - MXFP4::kOffset; }
  static int code(float y) {
    int code = 0;
    while (code < 7 && std::fabs(y) > (level(code) + level(code + 1)) / 2) ++code;
    return y < 0 && code > 0 ? code + 8 : code;
  }
  static float nearest(float y) {
    float nearest = 0;
    for (int code = 1; code < 8; ++code)
      nearest = std::fabs(y) > (level(code - 1) + level(code)) / 2 ? level(code) : nearest;
    return std::copysign(nearest, y);
  }
};

}  // namespace kt::quant::search
