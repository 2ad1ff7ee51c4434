// A test run once on every instruction set this machine can run:
//
//   struct Kernels : IsaTest { Kernels() : IsaTest(17) {} };
//   KT_EVERY_ISA(Kernels);
//   TEST_P(Kernels, Add) { ... table() ... }
#pragma once

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace kt::cpu {

inline std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (int i = 0; i < isa_count(); ++i)
    if (isa_at(i).usable) names.push_back(isa_at(i).name);
  return names;
}

class IsaTest : public ::testing::TestWithParam<std::string> {
 protected:
  explicit IsaTest(unsigned seed) : random_(seed) {}
  const KernelTable& table() const { return kernels_of(GetParam()); }
  std::vector<float> floats(int64_t count, float spread = 1.0f) {
    std::normal_distribution<float> normal(0, spread);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random_);
    return values;
  }
  std::mt19937 random_;
};

#define KT_EVERY_ISA(Suite)                                                \
  INSTANTIATE_TEST_SUITE_P(Isa, Suite, ::testing::ValuesIn(usable_isas()), \
                           [](const auto& info) { return info.param; })

}  // namespace kt::cpu
