#include "base/checksum.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace kt {
namespace {

std::vector<uint8_t> random_bytes(size_t count) {
  std::mt19937 random(3);
  std::vector<uint8_t> bytes(count);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

TEST(Checksum, OfPartsAddsUpToThatOfTheWhole) {
  const auto bytes = random_bytes(8003);
  const uint64_t whole = checksum(bytes.data(), bytes.size(), 0);
  for (const size_t cut : {0u, 8u, 4000u, 8000u}) {
    EXPECT_EQ(checksum(bytes.data(), cut, 0) +
                  checksum(bytes.data() + cut, bytes.size() - cut, cut / 8),
              whole);
  }
}

TEST(Checksum, SeesEveryFlippedBitAndEverySwappedWord) {
  auto bytes = random_bytes(515);
  const uint64_t whole = checksum(bytes.data(), bytes.size(), 0);
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    bytes[bit / 8] ^= 1 << bit % 8;
    EXPECT_NE(checksum(bytes.data(), bytes.size(), 0), whole) << bit;
    bytes[bit / 8] ^= 1 << bit % 8;
  }
  for (size_t a = 0; a < 64; ++a) {
    std::swap_ranges(&bytes[a * 8], &bytes[a * 8] + 8, &bytes[((a + 7) % 64) * 8]);
    EXPECT_NE(checksum(bytes.data(), bytes.size(), 0), whole) << a;
    std::swap_ranges(&bytes[a * 8], &bytes[a * 8] + 8, &bytes[((a + 7) % 64) * 8]);
  }
  EXPECT_NE(checksum(bytes.data(), bytes.size() - 8, 0), whole);
}

TEST(Checksum, ZerosAreNotNothing) {
  const std::vector<uint8_t> zeros(64, 0);
  EXPECT_NE(checksum(zeros.data(), 64, 0), checksum(zeros.data(), 56, 0));
  EXPECT_NE(checksum(zeros.data(), 64, 0), 0u);
}

}  // namespace
}  // namespace kt
