// The 12 bytes in which Q4_K and Q5_K keep eight 6-bit scales s and eight 6-bit minima t:
//
//   byte j     (j < 4)  bits 0-5 s[j],          bits 6-7 the high two bits of s[j + 4]
//   byte 4 + j          bits 0-5 t[j],          bits 6-7 the high two bits of t[j + 4]
//   byte 8 + j          low half: low four bits of s[j + 4], high half: those of t[j + 4]
#pragma once

#include <stdint.h>

namespace kt::quant {

static inline void unpack_k_scales(const uint8_t* packed, uint8_t* s, uint8_t* t) {
  for (int j = 0; j < 4; ++j) {
    s[j] = packed[j] & 63;
    t[j] = packed[4 + j] & 63;
    s[j + 4] = (uint8_t)((packed[8 + j] & 15) | (packed[j] >> 6 << 4));
    t[j + 4] = (uint8_t)((packed[8 + j] >> 4) | (packed[4 + j] >> 6 << 4));
  }
}

/// The inverse; every s and t must be < 64.
static inline void pack_k_scales(const uint8_t* s, const uint8_t* t, uint8_t* packed) {
  for (int j = 0; j < 4; ++j) {
    packed[j] = (uint8_t)(s[j] | s[j + 4] >> 4 << 6);
    packed[4 + j] = (uint8_t)(t[j] | t[j + 4] >> 4 << 6);
    packed[8 + j] = (uint8_t)((s[j + 4] & 15) | (t[j + 4] & 15) << 4);
  }
}

}  // namespace kt::quant
