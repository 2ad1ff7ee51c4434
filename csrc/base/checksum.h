// A checksum that parts of a buffer can be added up from, in any order: for damage, not for malice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace kt {

/// Sum over 8-byte words of (word ^ place * odd) * odd, modulo 2^64. `place` is the number of the
/// first word in the whole; the sum of the parts' checksums is that of the whole. A last, incomplete
/// word is filled up with zeros.
inline uint64_t checksum(const uint8_t* data, size_t bytes, uint64_t place) {
  constexpr uint64_t kPlace = 0x9E3779B97F4A7C15u, kMix = 0xD6E8FEB86659FD93u;
  uint64_t sum = 0;
  const size_t words = bytes / 8;
  for (size_t i = 0; i < words; ++i) {
    uint64_t word;
    std::memcpy(&word, data + 8 * i, 8);
    const uint64_t mixed = (word ^ (place + i + 1) * kPlace) * kMix;
    sum += mixed ^ mixed >> 32;  // a flip of the highest bit must reach more than the highest bit
  }
  if (bytes % 8 != 0) {
    uint64_t word = 0;
    std::memcpy(&word, data + 8 * words, bytes % 8);
    const uint64_t mixed = (word ^ (place + words + 1) * kPlace) * kMix;
    sum += mixed ^ mixed >> 32;
  }
  return sum;
}

}  // namespace kt
