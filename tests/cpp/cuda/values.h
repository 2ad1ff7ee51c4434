// Random values of the tests.
#pragma once

#include <cstddef>
#include <random>
#include <vector>

namespace kt::cuda {

/// Normal values around 0.
inline std::vector<float> gaussian(size_t count, unsigned seed, float spread = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> values(count);
  for (float& v : values) v = normal(random);
  return values;
}

}  // namespace kt::cuda
