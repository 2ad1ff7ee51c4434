// Fetching what a product needs next while it is busy with what it has.
#pragma once

#include "cpu/kernels/simd_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

/// Bytes of the next slab, fetched a few lines at a time between micro-kernels; none where `first`
/// is null.
class Prefetcher {
 public:
  Prefetcher(const uint8_t* first, const uint8_t* second, int64_t bytes, int steps)
      : at_{first, second}, left_(first ? (bytes + 63) / 64 : 0) {
    per_step_ = (left_ + steps - 1) / steps;
  }
  KT_INLINE void step(Prefetcher& p) {
    for (int64_t i = 0; i < p.per_step_ && p.left_ > 0; ++i, --p.left_) {
      for (const uint8_t*& at : p.at_) {
        __builtin_prefetch(at, 0, 2);
        at += 64;
      }
    }
  }

 private:
  const uint8_t* at_[2];
  int64_t left_, per_step_;
};

}  // namespace
}  // namespace kt::cpu::KT_ISA
