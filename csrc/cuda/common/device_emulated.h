// device.h for g++: the same names, run by emulator.h. Collectives are computed in float or double
// from what the lanes brought, independently of how a GPU would.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "base/half.h"
#include "cuda/common/emulator.h"

#define KT_DEVICE inline
#define KT_HOST_DEVICE inline
#define KT_UNROLL

namespace kt::cuda {

using emulated::Site;
// The caller's place: default arguments are evaluated where a function is called.
#define KT_SITE emulated::Site site = {__builtin_FILE(), __builtin_LINE()}

inline unsigned thread_id() { return emulated::place().thread; }
inline unsigned lane_id() { return thread_id() % 32; }
inline unsigned warp_id() { return thread_id() / 32; }
inline unsigned block_x() { return emulated::place().block_x; }
inline unsigned block_y() { return emulated::place().block_y; }
inline unsigned block_z() { return emulated::place().block_z; }
inline unsigned grid_x() { return emulated::place().grid_x; }
inline unsigned grid_y() { return emulated::place().grid_y; }
inline unsigned block_threads() { return emulated::place().threads; }

inline void sync(KT_SITE) { emulated::block_barrier(site); }
inline void sync_warp(KT_SITE) { emulated::warp_barrier(site); }

// ---- checked pointers ----

enum class Space { kShared, kGlobal };

template <class T, Space kSpace>
inline void check_access(const T* p, bool write, Site site) {
  if constexpr (kSpace == Space::kShared) {
    static_assert(sizeof(T) >= 2, "shared memory is checked by two bytes");
    emulated::check_shared(p, sizeof(T), alignof(T), write, site);
  } else {
    emulated::check_global(p, sizeof(T), alignof(T), write, site);
  }
}

/// What x[i] gives: reads and writes are checked when they happen.
template <class T, Space kSpace>
class Reference {
 public:
  using Value = std::remove_const_t<T>;
  Reference(T* p, Site site) : p_(p), site_(site) {}
  operator Value() const {
    check_access<Value, kSpace>(p_, false, site_);
    return *p_;
  }
  const Reference& operator=(const Value& value) const {
    check_access<Value, kSpace>(p_, true, site_);
    *p_ = value;
    return *this;
  }
  const Reference& operator=(const Reference& other) const {
    return *this = static_cast<Value>(other);
  }
  const Reference& operator+=(const Value& value) const {
    return *this = static_cast<Value>(*this) + value;
  }
  T* address() const { return p_; }

 private:
  T* p_;
  Site site_;
};

template <class T, Space kSpace>
class Pointer {
 public:
  Pointer() = default;
  explicit Pointer(T* p) : p_(p) {}
  template <class U>
    requires std::is_same_v<T, const U>
  Pointer(Pointer<U, kSpace> other) : p_(other.raw()) {}

  /// An index that remembers where in the source it was written.
  struct Index {
    int64_t value;
    Site site;
    template <class I>
      requires std::is_integral_v<I>
    Index(I i, KT_SITE) : value(static_cast<int64_t>(i)), site(site) {}
  };
  Reference<T, kSpace> operator[](Index i) const { return {p_ + i.value, i.site}; }
  Pointer operator+(int64_t n) const { return Pointer(p_ + n); }
  T* raw() const { return p_; }

 private:
  T* p_ = nullptr;
};

template <class T>
using Shared = Pointer<T, Space::kShared>;
template <class T>
using Global = Pointer<T, Space::kGlobal>;

template <class T>
inline Shared<T> shared_at(size_t byte) {
  return Shared<T>(reinterpret_cast<T*>(emulated::shared_base() + byte));
}
template <class U, class T>
inline Shared<U> shared_cast(Shared<T> p) {
  return Shared<U>(reinterpret_cast<U*>(p.raw()));
}
template <class U, class T>
inline Global<U> global_cast(Global<T> p) {
  return Global<U>(reinterpret_cast<U*>(p.raw()));
}

inline Words4 load_once(Global<const Words4> p, KT_SITE) {
  check_access<Words4, Space::kGlobal>(p.raw(), false, site);
  return *p.raw();
}

// ---- asynchronous copies ----

template <class T, class U>
inline void async_copy16(Shared<T> target, Global<const U> source, bool present = true, KT_SITE) {
  emulated::async_copy(target.raw(), source.raw(), 16, !present, site);
}
/// The same for bytes read once: first out of the L2 cache.
template <class T, class U>
inline void async_copy16_once(Shared<T> target, Global<const U> source, bool present = true,
                              KT_SITE) {
  emulated::async_copy(target.raw(), source.raw(), 16, !present, site);
}
inline void async_commit() { emulated::async_commit(); }
template <int kGroupsLeft>
inline void async_wait() {
  emulated::async_wait(kGroupsLeft);
}

// ---- collectives of a warp ----

template <class T>
struct Shuffled {
  T value;
  unsigned from;
};

template <class T>
inline T shuffle(T value, unsigned from, KT_SITE) {
  const Shuffled<T> in{value, from % 32};
  T out;
  emulated::collective(
      &in, &out,
      [](const void* const* in, void* const* out) {
        for (int lane = 0; lane < 32; ++lane) {
          const unsigned from = static_cast<const Shuffled<T>*>(in[lane])->from;
          *static_cast<T*>(out[lane]) = static_cast<const Shuffled<T>*>(in[from])->value;
        }
      },
      site);
  return out;
}
template <class T>
inline T shuffle_xor(T value, unsigned mask, KT_SITE) {
  return shuffle(value, lane_id() ^ mask, site);
}
/// The value of the lane `delta` below; lanes without one keep their own.
template <class T>
inline T shuffle_up(T value, unsigned delta, KT_SITE) {
  return shuffle(value, lane_id() < delta ? lane_id() : lane_id() - delta, site);
}
inline uint32_t ballot(bool predicate, KT_SITE) {
  const bool in = predicate;
  uint32_t out;
  emulated::collective(
      &in, &out,
      [](const void* const* in, void* const* out) {
        uint32_t bits = 0;
        for (int lane = 0; lane < 32; ++lane)
          bits |= uint32_t{*static_cast<const bool*>(in[lane])} << lane;
        for (int lane = 0; lane < 32; ++lane) *static_cast<uint32_t*>(out[lane]) = bits;
      },
      site);
  return out;
}

// ---- conversions ----

inline float to_float(float v) { return v; }
inline float to_float(half_t v) { return half_to_float(v.bits); }
inline float to_float(bf16_t v) { return bf16_to_float(v.bits); }
inline float to_float(fp8_t v) {
  const int exponent = v.bits >> 3 & 15, mantissa = v.bits & 7;
  const float magnitude = (v.bits & 127) == 127 ? NAN
                          : exponent            ? std::ldexp(1.0f + 0.125f * mantissa, exponent - 7)
                                                : std::ldexp(0.125f * mantissa, -6);
  return v.bits & 128 ? -magnitude : magnitude;
}
template <class T>
inline T from_float(float v);
template <>
inline float from_float<float>(float v) {
  return v;
}
template <>
inline half_t from_float<half_t>(float v) {
  return {float_to_half(v)};
}
template <>
inline bf16_t from_float<bf16_t>(float v) {
  return {float_to_bf16(v)};
}
/// To nearest even; beyond the range: the largest value.
template <>
inline fp8_t from_float<fp8_t>(float v) {
  const uint8_t sign = std::signbit(v) ? 128 : 0;
  const float m = std::fabs(v);
  if (std::isnan(v)) return {uint8_t(sign | 127)};
  if (m >= 448.0f) return {uint8_t(sign | 126)};
  const int exponent = m < 0.015625f ? -6 : std::ilogb(m);
  const int units = static_cast<int>(std::nearbyint(std::ldexp(m, 3 - exponent)));  // 0..16
  return {uint8_t(sign | (units + ((exponent + 6) << 3)))};
}

template <class T>
inline uint32_t pack2(float low, float high) {
  return from_float<T>(low).bits | uint32_t{from_float<T>(high).bits} << 16;
}
template <class T>
inline Float2 unpack2(uint32_t v) {
  return {to_float(T{uint16_t(v)}), to_float(T{uint16_t(v >> 16)})};
}

/// Two FP8 values in the lower bytes, times a power of two that T has.
template <class T>
inline uint32_t unpack_fp8(uint32_t pair, float scale) {
  return pack2<T>(to_float(fp8_t{static_cast<uint8_t>(pair)}) * scale,
                  to_float(fp8_t{static_cast<uint8_t>(pair >> 8)}) * scale);
}

/// a * b + c, each half rounded once.
template <class T>
inline uint32_t fma2(uint32_t a, uint32_t b, uint32_t c) {
  const Float2 x = unpack2<T>(a), y = unpack2<T>(b), z = unpack2<T>(c);
  // Exact in double for 16-bit floats, then one rounding; double to float to half could round
  // twice only where the float is exactly halfway, which fmaf's own rounding makes sticky enough.
  return pack2<T>(std::fma(x.x[0], y.x[0], z.x[0]), std::fma(x.x[1], y.x[1], z.x[1]));
}
template <class T>
inline uint32_t mul2(uint32_t a, uint32_t b) {
  const Float2 x = unpack2<T>(a), y = unpack2<T>(b);
  return pack2<T>(x.x[0] * y.x[0], x.x[1] * y.x[1]);
}
template <class T>
inline uint32_t sub2(uint32_t a, uint32_t b) {
  const Float2 x = unpack2<T>(a), y = unpack2<T>(b);
  return pack2<T>(x.x[0] - y.x[0], x.x[1] - y.x[1]);
}

/// Any function of three bits, by its truth table.
template <int kTable>
inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t out = 0;
  for (int i = 0; i < 8; ++i)
    if (kTable >> i & 1) out |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return out;
}
/// Four bytes of the eight of (b, a), byte i named by hexadecimal digit i of the selector.
inline uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = uint64_t{b} << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= uint32_t(both >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
  return out;
}

inline float exp2_fast(float x) { return std::exp2(x); }
inline float exp_fast(float x) { return std::exp(x); }
inline float log_fast(float x) { return std::log(x); }
inline float sine(float x) { return std::sin(x); }
inline float cosine(float x) { return std::cos(x); }
inline float rsqrt_fast(float x) { return 1.0f / std::sqrt(x); }
inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline float min(float a, float b) { return std::fmin(a, b); }
inline int max(int a, int b) { return a > b ? a : b; }
inline int min(int a, int b) { return a < b ? a : b; }
inline float abs(float a) { return std::fabs(a); }
inline float infinity() { return INFINITY; }
inline uint32_t bits_of(float v) { return float_to_bits(v); }
inline float float_of(uint32_t bits) { return bits_to_float(bits); }
/// The upper half of a product.
inline uint64_t multiply_high(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline int count_bits(uint32_t v) { return __builtin_popcount(v); }

// ---- tensor cores ----

/// Fragments of m16n8k16, two 16-bit values per word, as PTX lays them over the lanes:
/// A [16, 16]: row lane / 4 (+ 8 in words 1 and 3), columns 2 (lane % 4), + 1 (+ 8 in words 2, 3)
/// B [16, 8]:  column lane / 4, rows 2 (lane % 4), + 1 (+ 8 in word 1)
/// D [16, 8]:  row lane / 4 (+ 8 in 2 and 3), columns 2 (lane % 4), + 1
struct FragmentA {
  uint32_t x[4];
};
struct FragmentB {
  uint32_t x[2];
};
struct FragmentD {
  float x[4];
};

struct MmaIn {
  FragmentD d;
  FragmentA a;
  FragmentB b;
};

template <class T>
inline void mma(FragmentD& d, const FragmentA& a, const FragmentB& b, KT_SITE) {
  const MmaIn in{d, a, b};
  emulated::collective(
      &in, &d,
      [](const void* const* in, void* const* out) {
        float left[16][16], right[16][8];
        for (int lane = 0; lane < 32; ++lane) {
          const MmaIn& mine = *static_cast<const MmaIn*>(in[lane]);
          const int g = lane / 4, t = lane % 4;
          for (int w = 0; w < 4; ++w) {
            const Float2 pair = unpack2<T>(mine.a.x[w]);
            for (int i = 0; i < 2; ++i) left[g + w % 2 * 8][2 * t + i + w / 2 * 8] = pair.x[i];
          }
          for (int w = 0; w < 2; ++w) {
            const Float2 pair = unpack2<T>(mine.b.x[w]);
            for (int i = 0; i < 2; ++i) right[2 * t + i + 8 * w][g] = pair.x[i];
          }
        }
        float sums[16][8] = {};
        for (int row = 0; row < 16; ++row)
          for (int k = 0; k < 16; ++k)
            for (int column = 0; column < 8; ++column)
              sums[row][column] += left[row][k] * right[k][column];
        for (int lane = 0; lane < 32; ++lane) {
          const MmaIn& mine = *static_cast<const MmaIn*>(in[lane]);
          FragmentD& d = *static_cast<FragmentD*>(out[lane]);
          for (int i = 0; i < 4; ++i)
            d.x[i] = mine.d.x[i] + sums[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
        }
      },
      site);
}

struct LoadMatrixIn {
  const uint8_t* row;
  bool transposed;
};

/// Lane i names row i % 8 of matrix i / 8 (8 x 8 values of 16 bits, rows of 16 bytes); word j of a
/// lane is matrix j's row lane / 4, columns 2 (lane % 4), + 1 (transposed: column and rows).
template <class T>
inline Words4 load_matrix4(Shared<T> row, bool transposed = false, KT_SITE) {
  emulated::check_shared(row.raw(), 16, 16, false, site);
  const LoadMatrixIn in{reinterpret_cast<const uint8_t*>(row.raw()), transposed};
  Words4 out;
  emulated::collective(
      &in, &out,
      [](const void* const* in, void* const* out) {
        for (int lane = 0; lane < 32; ++lane) {
          for (int j = 0; j < 4; ++j) {
            uint16_t pair[2];
            for (int i = 0; i < 2; ++i) {
              const bool swap = static_cast<const LoadMatrixIn*>(in[lane])->transposed;
              const int row = swap ? 2 * (lane % 4) + i : lane / 4;
              const int column = swap ? lane / 4 : 2 * (lane % 4) + i;
              memcpy(&pair[i], static_cast<const LoadMatrixIn*>(in[8 * j + row])->row + 2 * column,
                     2);
            }
            static_cast<Words4*>(out[lane])->x[j] = pair[0] | uint32_t{pair[1]} << 16;
          }
        }
      },
      site);
  return out;
}
template <class T>
inline Words4 load_matrix4_transposed(Shared<T> row, KT_SITE) {
  return load_matrix4(row, true, site);
}

// ---- device memory between blocks ----

template <class T>
inline T atomic_add(Global<T> p, T value, KT_SITE) {
  check_access<T, Space::kGlobal>(p.raw(), false, site);
  const T old = *p.raw();
  check_access<T, Space::kGlobal>(p.raw(), true, site);
  *p.raw() = old + value;
  return old;
}
template <class T>
inline T atomic_add(Shared<T> p, T value, KT_SITE) {
  emulated::check_shared_atomic(p.raw(), sizeof(T), alignof(T), site);
  const T old = *p.raw();
  *p.raw() = old + value;
  return old;
}
inline void fence() {}

// ---- launching ----

template <class Kernel>
inline void launch(const LaunchShape& shape, const typename Kernel::Params& params, Stream) {
  KT_CHECK(shape.threads <= Kernel::kThreads, "a block of ", shape.threads,
           " threads, the kernel is compiled for ", Kernel::kThreads);
  emulated::run_grid(__PRETTY_FUNCTION__, shape, [&] { Kernel::run(params); });
}

#undef KT_SITE

}  // namespace kt::cuda
