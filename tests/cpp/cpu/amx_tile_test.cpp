// The emulated tiles against plain sums in 64 bits, and what faults on the unit traps here. The unit
// itself is held against the vectors by tests/python/test_kernels.py, where there is one.
#define KT_ISA emulated_tiles
#define KT_TILES_EMULATED 1
#include "cpu/kernels/amx_tile_inl.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace kt::cpu::KT_ISA {
namespace {

constexpr int kStride = 80;  // rows need not lie close

struct Product {
  int m, n, k;  // rows of A, lanes of 32 bits of C, groups of four bytes
};

// C, A and B in tiles 0, 1 and 2.
constexpr TileConfig config_of(int m, int n, int k) {
  const TileShape c = {(uint8_t)m, (uint16_t)(4 * n)}, a = {(uint8_t)m, (uint16_t)(4 * k)};
  const TileShape b = {(uint8_t)k, (uint16_t)(4 * n)};
  return TileConfig({c, a, b, {}, {}, {}, {}, {}});
}

TEST(AmxTiles, MultiplyAsTheManualSays) {
  std::mt19937 random(5);
  for (const Product p : {Product{16, 16, 16}, {16, 16, 8}, {3, 16, 8}, {16, 5, 1}, {1, 1, 4}}) {
    std::vector<uint8_t> a(16 * kStride), b(16 * kStride);
    for (auto& byte : a) byte = (uint8_t)random();
    for (auto& byte : b) byte = (uint8_t)random();
    std::vector<int32_t> start(16 * 16), us(16 * 16, -1), ss(16 * 16, -1);
    for (auto& value : start) value = (int32_t)random() / 2;
    Tiles tiles;
    Tiles::start(tiles, config_of(p.m, p.n, p.k));
    Tiles::load<1>(tiles, a.data(), kStride);
    Tiles::load<2>(tiles, b.data(), kStride);
    Tiles::load<0>(tiles, start.data(), 64);
    Tiles::multiply_us<0, 1, 2>(tiles);
    Tiles::store<0>(tiles, us.data(), 64);
    Tiles::zero<0>(tiles);
    Tiles::multiply_ss<0, 1, 2>(tiles);
    Tiles::store<0>(tiles, ss.data(), 64);
    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < 16; ++n) {
        int64_t unsigned_signed = start[m * 16 + n], signed_signed = 0;
        for (int k = 0; k < 4 * p.k; ++k) {
          const uint8_t x = a[m * kStride + k], w = b[k / 4 * kStride + 4 * n + k % 4];
          unsigned_signed += int64_t{x} * (int8_t)w;
          signed_signed += int64_t{(int8_t)x} * (int8_t)w;
        }
        const bool is_there = m < p.m && n < p.n;
        ASSERT_EQ(us[m * 16 + n], is_there ? unsigned_signed : -1) << p.m << ' ' << m << ' ' << n;
        ASSERT_EQ(ss[m * 16 + n], is_there ? signed_signed : -1) << p.m << ' ' << m << ' ' << n;
      }
    }
  }
}

TEST(AmxTilesDeath, WhatFaultsOnTheUnitTraps) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  Tiles tiles;
  Tiles::start(tiles, config_of(16, 16, 8));
  EXPECT_DEATH((Tiles::multiply_us<0, 2, 1>(tiles)), "");  // shapes do not fit
  EXPECT_DEATH((Tiles::multiply_us<0, 1, 1>(tiles)), "");  // one tile twice
  EXPECT_DEATH(Tiles::zero<3>(tiles), "");                 // not configured
  EXPECT_DEATH(Tiles::start(tiles, config_of(17, 16, 8)), "");
  EXPECT_DEATH(Tiles::start(tiles, config_of(16, 16, 17)), "");
  Tiles::stop(tiles);
  EXPECT_DEATH(Tiles::zero<0>(tiles), "");
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
