// Intel AMX in a thin header: eight tiles of up to 16 rows of 64 bytes, and products of bytes into 32 bits.
//
//     C[m][n] += sum over k and j in 0..3 of A[m][4 k + j] * B[k][4 n + j]
//
// Two implementations of the same functions. One is the instructions. The other (KT_TILES_EMULATED) does
// in plain C++ what their manual says, tile shapes included, so that kernels written against this header
// run, and are tested, on CPUs without the unit; what would fault there traps here.
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBSSD and LDTILECFG.
#pragma once

#include <stdint.h>
#include <string.h>

#include "cpu/kernels/simd_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

struct TileShape {
  uint8_t rows;
  uint16_t bytes;  // of a row
};

// The 64 bytes that LDTILECFG reads, for palette 1.
struct TileConfig {
  alignas(64) uint8_t bytes[64];
  constexpr explicit TileConfig(const TileShape (&shapes)[8]) : bytes() {
    bytes[0] = 1;
    for (int i = 0; i < 8; ++i) {
      bytes[16 + 2 * i] = (uint8_t)shapes[i].bytes;
      bytes[17 + 2 * i] = (uint8_t)(shapes[i].bytes >> 8);
      bytes[48 + i] = shapes[i].rows;
    }
  }
};

#if !defined(KT_TILES_EMULATED)

// The thread's tiles, from here to the end of the scope. By name, so that no compiler flag is needed.
class Tiles {
 public:
  KT_INLINE void start(Tiles&, const TileConfig& config) {
    asm volatile("ldtilecfg %0" ::"m"(config.bytes) : "memory");
  }
  KT_INLINE void stop(Tiles&) { asm volatile("tilerelease" ::: "memory"); }
  template <int tile>
  KT_INLINE void zero(Tiles&) {
    asm volatile("tilezero %%tmm%c0" ::"i"(tile));
  }
  template <int tile>
  KT_INLINE void load(Tiles&, const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(tile) : "memory");
  }
  template <int tile>
  KT_INLINE void store(Tiles&, void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(tile) : "memory");
  }
  // C += A of unsigned bytes times B of signed ones.
  template <int c, int a, int b>
  KT_INLINE void multiply_us(Tiles&) {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
  }
  // C += A times B, both of signed bytes.
  template <int c, int a, int b>
  KT_INLINE void multiply_ss(Tiles&) {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
  }
};

#else

class Tiles {
 public:
  KT_INLINE void start(Tiles& t, const TileConfig& config) {
    if (config.bytes[0] != 1 || config.bytes[1] != 0) __builtin_trap();
    for (int i = 0; i < 8; ++i) {
      Tile& tile = t.tiles_[i];
      tile.bytes = config.bytes[16 + 2 * i] | config.bytes[17 + 2 * i] << 8;
      tile.rows = config.bytes[48 + i];
      if (tile.bytes > 64 || tile.rows > 16 || (tile.bytes == 0) != (tile.rows == 0))
        __builtin_trap();
      memset(tile.at, 0, sizeof tile.at);
    }
  }
  KT_INLINE void stop(Tiles& t) {
    for (Tile& tile : t.tiles_) tile.rows = tile.bytes = 0;
  }
  template <int tile>
  KT_INLINE void zero(Tiles& t) {
    configured(t.tiles_[tile]);
    memset(t.tiles_[tile].at, 0, sizeof t.tiles_[tile].at);
  }
  template <int tile>
  KT_INLINE void load(Tiles& t, const void* from, int64_t stride) {
    zero<tile>(t);
    for (int r = 0; r < t.tiles_[tile].rows; ++r)
      memcpy(t.tiles_[tile].at[r], (const uint8_t*)from + r * stride, t.tiles_[tile].bytes);
  }
  template <int tile>
  KT_INLINE void store(Tiles& t, void* to, int64_t stride) {
    configured(t.tiles_[tile]);
    for (int r = 0; r < t.tiles_[tile].rows; ++r)
      memcpy((uint8_t*)to + r * stride, t.tiles_[tile].at[r], t.tiles_[tile].bytes);
  }
  template <int c, int a, int b>
  KT_INLINE void multiply_us(Tiles& t) {
    multiply<uint8_t, int8_t>(t.tiles_[c], t.tiles_[a], t.tiles_[b]);
  }
  template <int c, int a, int b>
  KT_INLINE void multiply_ss(Tiles& t) {
    multiply<int8_t, int8_t>(t.tiles_[c], t.tiles_[a], t.tiles_[b]);
  }

 private:
  struct Tile {
    int rows, bytes;
    alignas(64) uint8_t at[16][64];
  };
  KT_INLINE void configured(const Tile& tile) {
    if (tile.rows == 0) __builtin_trap();
  }
  template <class A, class B>
  static void multiply(Tile& c, const Tile& a, const Tile& b) {
    const bool fit = c.rows == a.rows && a.bytes == 4 * b.rows && b.bytes == c.bytes;
    if (!fit || a.bytes % 4 != 0 || c.bytes % 4 != 0 || c.rows == 0 || &a == &b || &a == &c ||
        &b == &c)
      __builtin_trap();
    for (int m = 0; m < c.rows; ++m) {
      for (int n = 0; n < c.bytes / 4; ++n) {
        int32_t sum;
        memcpy(&sum, c.at[m] + 4 * n, 4);
        for (int k = 0; k < b.rows; ++k)
          for (int j = 0; j < 4; ++j)
            sum += (int32_t)(A)a.at[m][4 * k + j] * (int32_t)(B)b.at[k][4 * n + j];
        memcpy(c.at[m] + 4 * n, &sum, 4);
      }
    }
  }

  Tile tiles_[8];
};

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
