// Decoding of weight formats in a kernel: one row of an R16 record in shared memory, four values or
// one scale at a time. The device's counterpart of the formats' unpack_ints (csrc/quant), held to
// it by a test over every format:
//
//   codes(row, v)    the u of values v ... v + 3, one per byte; v a multiple of 4 within the block
//   scale(row, g), minimum(row, g)    of group g: value = scale * (u - kOffset) + minimum
#pragma once

#include "cuda/common/device.h"
#include "quant/list.h"
#include "quant/r16.h"

namespace kt::cuda {

/// A codebook where kernels can index it.
template <class E, int kCount>
struct Table {
  E values[kCount];
};
template <class E, int kCount>
constexpr Table<E, kCount> table_of(const E (&from)[kCount]) {
  Table<E, kCount> t{};
  for (int i = 0; i < kCount; ++i) t.values[i] = from[i];
  return t;
}
#if defined(__CUDACC__)
#define KT_TABLE static __device__ const
#else
#define KT_TABLE static constexpr
#endif
KT_TABLE Table<uint16_t, 256> kDeviceIq2xxs = table_of(quant::kIq2xxsGrid);
KT_TABLE Table<uint16_t, 512> kDeviceIq2xs = table_of(quant::kIq2xsGrid);
KT_TABLE Table<uint16_t, 1024> kDeviceIq2s = table_of(quant::kIq2sGrid);
KT_TABLE Table<uint16_t, 256> kDeviceIq3xxs = table_of(quant::kIq3xxsGrid);
KT_TABLE Table<uint16_t, 512> kDeviceIq3s = table_of(quant::kIq3sGrid);
KT_TABLE Table<uint16_t, 2048> kDeviceIq1 = table_of(quant::kIq1Grid);
#undef KT_TABLE

/// The block of one row inside a record; positions are those of the file's block.
template <class F>
struct RecordRow {
  using Layout = quant::R16<F>;
  Shared<const uint32_t> record;
  int row;

  /// Four bytes at `position`, which lies a multiple of 4 behind the head.
  KT_DEVICE uint32_t word(int position) const {
    constexpr int kWordsAt = Layout::kWordsAt / 4, kOffset = Layout::kWordOffset;
    return record[kWordsAt + quant::r16_place(F{}, (position - kOffset) / 4) * 16 + row];
  }
  KT_DEVICE uint32_t byte(int position) const {
    const int behind = (position - static_cast<int>(Layout::kWordOffset)) & 3;
    return word(position - behind) >> 8 * behind & 255;
  }
  /// Two bytes that do not cross a word.
  KT_DEVICE uint32_t half(int position) const {
    const int behind = (position - static_cast<int>(Layout::kWordOffset)) & 3;
    return word(position - behind) >> 8 * behind & 0xFFFF;
  }
  /// The head: a binary16, or MXFP4's exponent byte.
  KT_DEVICE uint32_t head() const {
    const Shared<const uint16_t> heads = shared_cast<const uint16_t>(record);
    if constexpr (Layout::kHead == 2) {
      return heads[row];
    } else {
      static_assert(Layout::kHead == 1 || Layout::kHead == 0);
      return uint32_t{uint16_t{heads[row / 2]}} >> row % 2 * 8 & 255;
    }
  }
  KT_DEVICE float head_float() const { return to_float(half_t{static_cast<uint16_t>(head())}); }
  KT_DEVICE float float16(int position) const {
    return to_float(half_t{static_cast<uint16_t>(half(position))});
  }
};

/// Bit i of `bits` to bit 0 of byte i.
KT_DEVICE uint32_t spread_bits(uint32_t bits) { return (bits & 15) * 0x00204081u & 0x01010101u; }

/// Three low bits of every byte -> the four nibbles of a selector of byte_permute.
KT_DEVICE uint32_t byte_selector(uint32_t bytes) {
  return (bytes & 7) | (bytes >> 4 & 0x70) | (bytes >> 8 & 0x700) | (bytes >> 12 & 0x7000);
}

/// Four of sixteen bytes, by the low nibbles of the bytes of `index`; the table as four words.
KT_DEVICE uint32_t pick16(uint32_t index, uint32_t t0, uint32_t t1, uint32_t t2, uint32_t t3) {
  const uint32_t selector = byte_selector(index);
  const uint32_t high = (index >> 3 & 0x01010101u) * 255u;
  return (byte_permute(t0, t1, selector) & ~high) | (byte_permute(t2, t3, selector) & high);
}

template <int kCount>
constexpr uint32_t four_of(const uint8_t (&t)[kCount], int at) {
  return t[at] | uint32_t{t[at + 1]} << 8 | uint32_t{t[at + 2]} << 16 | uint32_t{t[at + 3]} << 24;
}

KT_DEVICE uint32_t iq4_levels(uint32_t nibbles) {
  constexpr uint32_t t0 = four_of(quant::kIq4Levels, 0), t1 = four_of(quant::kIq4Levels, 4),
                     t2 = four_of(quant::kIq4Levels, 8), t3 = four_of(quant::kIq4Levels, 12);
  return pick16(nibbles, t0, t1, t2, t3);
}
KT_DEVICE uint32_t fp4_levels(uint32_t nibbles) {
  constexpr uint32_t t0 = four_of(quant::kFp4Levels, 0), t1 = four_of(quant::kFp4Levels, 4),
                     t2 = four_of(quant::kFp4Levels, 8), t3 = four_of(quant::kFp4Levels, 12);
  return pick16(nibbles, t0, t1, t2, t3);
}

/// Seven signs -> eight, an even number of them minus.
KT_DEVICE uint32_t even_signs8(uint32_t seven) { return seven | (count_bits(seven) & 1) << 7; }

/// offset + magnitude or, where its bit of `minus` is set, offset - magnitude; in four bytes.
KT_DEVICE uint32_t signed_codes(uint32_t magnitudes, uint32_t minus, int offset) {
  const uint32_t mask = spread_bits(minus) * 255u;
  // Bytes stay within 0..255 either way, so word arithmetic does not carry between them.
  const uint32_t base = offset * 0x01010101u;
  return (mask & (base - (magnitudes & mask))) | (~mask & (base + (magnitudes & ~mask)));
}

/// Four magnitudes of a point of 2-bit codes: 8, 25, 43.
KT_DEVICE uint32_t iq2_magnitudes(uint32_t codes) {
  const uint32_t c = (codes | codes << 6 | codes << 12 | codes << 18) & 0x03030303u;
  return byte_permute(0x002B1908u, 0, byte_selector(c));
}
/// Four magnitudes of a point of 3-bit codes.
KT_DEVICE uint32_t iq3_magnitudes(uint32_t codes, uint32_t t0, uint32_t t1) {
  const uint32_t selector =
      (codes & 7) | (codes << 1 & 0x70) | (codes << 2 & 0x700) | (codes << 3 & 0x7000);
  return byte_permute(t0, t1, selector);
}

template <class F>
struct Decode;

// ---- 32 values, one scale ----

/// Nibbles at `kCodes`: value j in the low half of byte j, value j + 16 in the high half.
template <class F, int kCodes>
struct NibbleDecode {
  KT_DEVICE static uint32_t nibbles(const RecordRow<F>& r, int v) {
    return r.word(kCodes + v % 16) >> v / 16 * 4 & 0x0F0F0F0Fu;
  }
  KT_DEVICE static float scale(const RecordRow<F>& r, int) { return r.head_float(); }
  KT_DEVICE static float minimum(const RecordRow<F>&, int) { return 0; }
};

template <>
struct Decode<quant::Q4_0> : NibbleDecode<quant::Q4_0, 2> {
  KT_DEVICE static uint32_t codes(const RecordRow<quant::Q4_0>& r, int v) { return nibbles(r, v); }
};
template <>
struct Decode<quant::IQ4_NL> : NibbleDecode<quant::IQ4_NL, 2> {
  KT_DEVICE static uint32_t codes(const RecordRow<quant::IQ4_NL>& r, int v) {
    return iq4_levels(nibbles(r, v));
  }
};
template <>
struct Decode<quant::MXFP4> : NibbleDecode<quant::MXFP4, 1> {
  KT_DEVICE static uint32_t codes(const RecordRow<quant::MXFP4>& r, int v) {
    return fp4_levels(nibbles(r, v));
  }
  KT_DEVICE static float scale(const RecordRow<quant::MXFP4>& r, int) {
    const uint32_t e = r.head();
    return float_of(e < 2 ? 0x00200000u << e : (e - 1) << 23);  // 2^(e - 128)
  }
};
template <>
struct Decode<quant::Q4_1> : NibbleDecode<quant::Q4_1, 4> {
  KT_DEVICE static uint32_t codes(const RecordRow<quant::Q4_1>& r, int v) { return nibbles(r, v); }
  KT_DEVICE static float scale(const RecordRow<quant::Q4_1>& r, int) { return r.float16(0); }
  KT_DEVICE static float minimum(const RecordRow<quant::Q4_1>& r, int) { return r.float16(2); }
};
template <>
struct Decode<quant::Q5_0> : NibbleDecode<quant::Q5_0, 6> {
  KT_DEVICE static uint32_t codes(const RecordRow<quant::Q5_0>& r, int v) {
    return nibbles(r, v) | spread_bits(r.word(2) >> v) << 4;
  }
};
template <>
struct Decode<quant::Q5_1> : NibbleDecode<quant::Q5_1, 8> {
  KT_DEVICE static uint32_t codes(const RecordRow<quant::Q5_1>& r, int v) {
    return nibbles(r, v) | spread_bits(r.word(4) >> v) << 4;
  }
  KT_DEVICE static float scale(const RecordRow<quant::Q5_1>& r, int) { return r.float16(0); }
  KT_DEVICE static float minimum(const RecordRow<quant::Q5_1>& r, int) { return r.float16(2); }
};
template <>
struct Decode<quant::Q8_0> {
  using Row = RecordRow<quant::Q8_0>;
  KT_DEVICE static uint32_t codes(const Row& r, int v) { return r.word(2 + v) ^ 0x80808080u; }
  KT_DEVICE static float scale(const Row& r, int) { return r.head_float(); }
  KT_DEVICE static float minimum(const Row&, int) { return 0; }
};
template <>
struct Decode<quant::NVFP4> {
  using Row = RecordRow<quant::NVFP4>;
  KT_DEVICE static uint32_t codes(const Row& r, int v) {
    return fp4_levels(r.word(4 + v / 16 * 8 + v % 8) >> v % 16 / 8 * 4 & 0x0F0F0F0Fu);
  }
  KT_DEVICE static float scale(const Row& r, int g) {
    const uint32_t e = r.byte(g), exponent = e >> 3 & 15, mantissa = e & 7;
    if (e == 0x7F) return 0;
    if (exponent == 0) return static_cast<float>(mantissa) * 0.0009765625f;
    return float_of((exponent + 119u) << 23 | mantissa << 20);
  }
  KT_DEVICE static float minimum(const Row&, int) { return 0; }
};

// ---- 256 values, two levels of scales ----

template <>
struct Decode<quant::Q2_K> {
  using Row = RecordRow<quant::Q2_K>;
  KT_DEVICE static uint32_t codes(const Row& r, int v) {
    return r.word(16 + v / 128 * 32 + v % 32) >> v % 128 / 32 * 2 & 0x03030303u;
  }
  KT_DEVICE static float scale(const Row& r, int g) {
    return r.float16(80) * static_cast<float>(r.byte(g) & 15);
  }
  KT_DEVICE static float minimum(const Row& r, int g) {
    return -(r.float16(82) * static_cast<float>(r.byte(g) >> 4));
  }
};
template <>
struct Decode<quant::Q3_K> {
  using Row = RecordRow<quant::Q3_K>;
  KT_DEVICE static uint32_t codes(const Row& r, int v) {
    const int i = v / 32, j = v % 32;
    return (r.word(32 + i / 4 * 32 + j) >> i % 4 * 2 & 0x03030303u) | (r.word(j) >> i & 0x01010101u)
                                                                          << 2;
  }
  KT_DEVICE static float scale(const Row& r, int g) {
    const int low = r.byte(96 + g % 8) >> g / 8 * 4 & 15,
              high = r.byte(104 + g % 4) >> g / 4 * 2 & 3;
    return r.head_float() * static_cast<float>((low | high << 4) - 32);
  }
  KT_DEVICE static float minimum(const Row&, int) { return 0; }
};

/// Six-bit scale and minimum of a group of Q4_K and Q5_K (quant/k_scales.h), bytes 4 ... 15.
template <class F>
struct KScales {
  using Row = RecordRow<F>;
  KT_DEVICE static float scale(const Row& r, int g) {
    const uint32_t s = g < 4 ? r.byte(4 + g) & 63 : (r.byte(8 + g) & 15) | r.byte(g) >> 6 << 4;
    return r.float16(0) * static_cast<float>(s);
  }
  KT_DEVICE static float minimum(const Row& r, int g) {
    const uint32_t t = g < 4 ? r.byte(8 + g) & 63 : r.byte(8 + g) >> 4 | r.byte(4 + g) >> 6 << 4;
    return -(r.float16(2) * static_cast<float>(t));
  }
};
template <>
struct Decode<quant::Q4_K> : KScales<quant::Q4_K> {
  KT_DEVICE static uint32_t codes(const Row& r, int v) {
    return r.word(16 + v / 64 * 32 + v % 32) >> v % 64 / 32 * 4 & 0x0F0F0F0Fu;
  }
};
template <>
struct Decode<quant::Q5_K> : KScales<quant::Q5_K> {
  KT_DEVICE static uint32_t codes(const Row& r, int v) {
    return (r.word(48 + v / 64 * 32 + v % 32) >> v % 64 / 32 * 4 & 0x0F0F0F0Fu) |
           (r.word(16 + v % 32) >> v / 32 & 0x01010101u) << 4;
  }
};
template <>
struct Decode<quant::Q6_K> {
  using Row = RecordRow<quant::Q6_K>;
  KT_DEVICE static uint32_t codes(const Row& r, int v) {
    const int h = v / 128, p = v % 128 / 32, j = v % 32;
    return (r.word(64 * h + 32 * (p % 2) + j) >> p / 2 * 4 & 0x0F0F0F0Fu) |
           (r.word(128 + 32 * h + j) >> 2 * p & 0x03030303u) << 4;
  }
  KT_DEVICE static float scale(const Row& r, int g) {
    return r.head_float() * static_cast<float>(static_cast<int8_t>(r.byte(192 + g)));
  }
  KT_DEVICE static float minimum(const Row&, int) { return 0; }
};

// ---- levels and codebooks ----

template <>
struct Decode<quant::IQ4_XS> {
  using Row = RecordRow<quant::IQ4_XS>;
  KT_DEVICE static uint32_t codes(const Row& r, int v) {
    return iq4_levels(r.word(8 + v / 32 * 16 + v % 16) >> v % 32 / 16 * 4 & 0x0F0F0F0Fu);
  }
  KT_DEVICE static float scale(const Row& r, int g) {
    const int low = r.byte(4 + g / 2) >> g % 2 * 4 & 15, high = r.half(2) >> 2 * g & 3;
    return r.float16(0) * static_cast<float>((low | high << 4) - 32);
  }
  KT_DEVICE static float minimum(const Row&, int) { return 0; }
};
template <>
struct Decode<quant::IQ2_XXS> {
  using Row = RecordRow<quant::IQ2_XXS>;
  KT_DEVICE static uint32_t codes(const Row& r, int v) {
    const int g = v / 32, p = v % 32 / 8, part = v % 8;  // part: 0 or 4
    const uint32_t point = kDeviceIq2xxs.values[r.byte(2 + 8 * g + p)];
    const uint32_t signs = even_signs8(r.word(6 + 8 * g) >> 7 * p & 127);
    return signed_codes(iq2_magnitudes(point >> 2 * part & 255), signs >> part, 43);
  }
  KT_DEVICE static float scale(const Row& r, int g) {
    return r.head_float() * (0.5f + static_cast<float>(r.word(6 + 8 * g) >> 28)) * 0.25f;
  }
  KT_DEVICE static float minimum(const Row&, int) { return 0; }
};
template <>
struct Decode<quant::IQ2_XS> {
  using Row = RecordRow<quant::IQ2_XS>;
  KT_DEVICE static uint32_t codes(const Row& r, int v) {
    const uint32_t q = r.half(2 + v / 8 * 2), part = v % 8;
    const uint32_t point = kDeviceIq2xs.values[q & 511];
    return signed_codes(iq2_magnitudes(point >> 2 * part & 255), even_signs8(q >> 9) >> part, 43);
  }
  KT_DEVICE static float scale(const Row& r, int g) {
    const uint32_t s = r.byte(66 + g / 2) >> g % 2 * 4 & 15;
    return r.head_float() * (0.5f + static_cast<float>(s)) * 0.25f;
  }
  KT_DEVICE static float minimum(const Row&, int) { return 0; }
};
template <>
struct Decode<quant::IQ2_S> {
  using Row = RecordRow<quant::IQ2_S>;
  KT_DEVICE static uint32_t codes(const Row& r, int v) {
    const int p = v / 8, part = v % 8;
    const uint32_t high = r.byte(66 + p / 4) >> p % 4 * 2 & 3;
    const uint32_t point = kDeviceIq2s.values[r.byte(2 + p) | high << 8];
    return signed_codes(iq2_magnitudes(point >> 2 * part & 255), r.byte(34 + p) >> part, 43);
  }
  KT_DEVICE static float scale(const Row& r, int g) {
    const uint32_t s = r.byte(74 + g / 2) >> g % 2 * 4 & 15;
    return r.head_float() * (0.5f + static_cast<float>(s)) * 0.25f;
  }
  KT_DEVICE static float minimum(const Row&, int) { return 0; }
};
template <>
struct Decode<quant::IQ3_XXS> {
  using Row = RecordRow<quant::IQ3_XXS>;
  KT_DEVICE static uint32_t codes(const Row& r, int v) {
    const int g = v / 32, p = v % 32 / 4;
    constexpr uint32_t t0 = four_of(quant::kIq3xxsLevels, 0), t1 = four_of(quant::kIq3xxsLevels, 4);
    const uint32_t point = kDeviceIq3xxs.values[r.byte(2 + 8 * g + p)];
    const uint32_t signs = even_signs8(r.word(66 + 4 * g) >> p / 2 * 7 & 127) >> p % 2 * 4;
    return signed_codes(iq3_magnitudes(point, t0, t1), signs, 62);
  }
  KT_DEVICE static float scale(const Row& r, int g) {
    return r.head_float() * (0.5f + static_cast<float>(r.word(66 + 4 * g) >> 28)) * 0.5f;
  }
  KT_DEVICE static float minimum(const Row&, int) { return 0; }
};
template <>
struct Decode<quant::IQ3_S> {
  using Row = RecordRow<quant::IQ3_S>;
  KT_DEVICE static uint32_t codes(const Row& r, int v) {
    const int p = v / 4;
    constexpr uint32_t t0 = four_of(quant::kIq3sLevels, 0), t1 = four_of(quant::kIq3sLevels, 4);
    const uint32_t high = r.byte(66 + p / 8) >> p % 8 & 1;
    const uint32_t point = kDeviceIq3s.values[r.byte(2 + p) | high << 8];
    return signed_codes(iq3_magnitudes(point, t0, t1), r.byte(74 + p / 2) >> p % 2 * 4, 15);
  }
  KT_DEVICE static float scale(const Row& r, int g) {
    const uint32_t s = r.byte(106 + g / 2) >> g % 2 * 4 & 15;
    return r.head_float() * static_cast<float>(1 + 2 * s);
  }
  KT_DEVICE static float minimum(const Row&, int) { return 0; }
};

/// Four values of a ternary point, in eighths around `zero`: zero + 8 (code - 1).
KT_DEVICE uint32_t iq1_codes(uint32_t point, int part, int zero) {
  const uint32_t c = point >> 2 * part & 255;
  const uint32_t bytes = (c | c << 6 | c << 12 | c << 18) & 0x03030303u;
  return (zero - 8) * 0x01010101u + bytes * 8u;  // zero is 8 or 10: no byte goes below 0
}
template <>
struct Decode<quant::IQ1_S> {
  using Row = RecordRow<quant::IQ1_S>;
  KT_DEVICE static uint32_t codes(const Row& r, int v) {
    const int g = v / 32, p = v % 32 / 8;
    const uint32_t word = r.half(34 + 2 * g);
    const uint32_t point = kDeviceIq1.values[r.byte(2 + 4 * g + p) | (word >> 3 * p & 7) << 8];
    return iq1_codes(point, v % 8, word & 0x8000 ? 8 : 10);
  }
  KT_DEVICE static float scale(const Row& r, int g) {
    const uint32_t s = r.half(34 + 2 * g) >> 12 & 7;
    return r.head_float() * static_cast<float>(2 * s + 1) * 0.125f;
  }
  KT_DEVICE static float minimum(const Row&, int) { return 0; }
};
template <>
struct Decode<quant::IQ1_M> {
  using Row = RecordRow<quant::IQ1_M>;
  KT_DEVICE static uint32_t codes(const Row& r, int v) {
    const int p = v / 8;
    const uint32_t high = r.byte(32 + p / 2) >> p % 2 * 4;
    const uint32_t point = kDeviceIq1.values[r.byte(p) | (high & 7) << 8];
    return iq1_codes(point, v % 8, high & 8 ? 8 : 10);
  }
  KT_DEVICE static float scale(const Row& r, int g) {
    uint32_t bits = 0;
    for (int w = 0; w < 4; ++w) bits |= r.half(48 + 2 * w) >> 12 << 4 * w;
    const uint32_t s = r.half(48 + g / 4 * 2) >> g % 4 * 3 & 7;
    return to_float(half_t{static_cast<uint16_t>(bits)}) * static_cast<float>(2 * s + 1) * 0.125f;
  }
  KT_DEVICE static float minimum(const Row&, int) { return 0; }
};

/// The formats kernels exist for: all of the list but plain floats (dense products) and the ternary
/// ones.
using DeviceFormats =
    quant::TypeList<quant::Q4_0, quant::Q4_1, quant::Q5_0, quant::Q5_1, quant::Q8_0, quant::Q2_K,
                    quant::Q3_K, quant::Q4_K, quant::Q5_K, quant::Q6_K, quant::IQ1_S, quant::IQ1_M,
                    quant::IQ2_XXS, quant::IQ2_XS, quant::IQ2_S, quant::IQ3_XXS, quant::IQ3_S,
                    quant::IQ4_NL, quant::IQ4_XS, quant::MXFP4, quant::NVFP4>;

}  // namespace kt::cuda
