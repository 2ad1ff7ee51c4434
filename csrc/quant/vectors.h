// Vectors of 16 bytes for the code that is compiled for the machine's baseline, where compilers do
// not find them: shuffles of bytes and nibbles.
#pragma once

#include <cstdint>
#include <cstring>

namespace kt::quant {

using Bytes16 = uint8_t __attribute__((vector_size(16)));
using Words8 = uint16_t __attribute__((vector_size(16)));
using Shorts8 = int16_t __attribute__((vector_size(16)));
using Ints4 = uint32_t __attribute__((vector_size(16)));
using Longs2 = uint64_t __attribute__((vector_size(16)));

template <class V>
static inline V load16(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
static inline void store16(void* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

// GCC before 12 has no __builtin_shufflevector, clang no __builtin_shuffle.
#if defined(__clang__)
#define KT_SHUFFLE(V, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define KT_SHUFFLE(V, a, b, ...) __builtin_shuffle(a, b, V{__VA_ARGS__})
#endif

/// a0 b0 a1 b1 ... of the first (low) and second (high) halves of a and b.
static inline Bytes16 zip_low(Bytes16 a, Bytes16 b) {
  return KT_SHUFFLE(Bytes16, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
static inline Bytes16 zip_high(Bytes16 a, Bytes16 b) {
  return KT_SHUFFLE(Bytes16, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
static inline Ints4 zip_low(Ints4 a, Ints4 b) { return KT_SHUFFLE(Ints4, a, b, 0, 4, 1, 5); }
static inline Ints4 zip_high(Ints4 a, Ints4 b) { return KT_SHUFFLE(Ints4, a, b, 2, 6, 3, 7); }

#undef KT_SHUFFLE

/// Sum of eight lanes.
static inline uint32_t lanes(Words8 v) {
  constexpr uint64_t kEven = 0x0000FFFF0000FFFFull;
  const Longs2 w = (Longs2)v;
  const uint64_t s = (w[0] & kEven) + (w[0] >> 16 & kEven) + (w[1] & kEven) + (w[1] >> 16 & kEven);
  return static_cast<uint32_t>(s) + static_cast<uint32_t>(s >> 32);
}
static inline uint32_t lanes(Ints4 v) { return v[0] + v[1] + v[2] + v[3]; }

/// zip() rounds make a transpose: row i of `a` is column i afterwards.
static inline void transpose(Bytes16 (&a)[16]) {
  Bytes16 b[16];
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 8; ++i)
      b[2 * i] = zip_low(a[i], a[i + 8]), b[2 * i + 1] = zip_high(a[i], a[i + 8]);
    for (int i = 0; i < 8; ++i)
      a[2 * i] = zip_low(b[i], b[i + 8]), a[2 * i + 1] = zip_high(b[i], b[i + 8]);
  }
}
static inline void transpose(Ints4 (&a)[4]) {
  const Ints4 b[4] = {zip_low(a[0], a[2]), zip_high(a[0], a[2]), zip_low(a[1], a[3]),
                      zip_high(a[1], a[3])};
  a[0] = zip_low(b[0], b[2]), a[1] = zip_high(b[0], b[2]);
  a[2] = zip_low(b[1], b[3]), a[3] = zip_high(b[1], b[3]);
}

}  // namespace kt::quant
