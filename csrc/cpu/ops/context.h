// What every operator needs while it runs: workers, kernels, scratch memory, and the facts of the
// rows at hand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/os.h"
#include "cpu/kernel_table.h"
#include "cpu/ops/phase.h"
#include "cpu/pool/pool.h"
#include "cpu/pool/thread_tuner.h"
#include "cpu/pool/weight_memory.h"

namespace kt::cpu {

class Matrix;

/// Bump allocator for what lives no longer than a step. It grows to the largest step seen and then
/// allocates nothing.
class Arena {
 public:
  /// `count` uninitialised values, 64-byte aligned, valid until the enclosing Scope ends.
  template <class T>
  T* take(size_t count) {
    return reinterpret_cast<T*>(take_bytes(count * sizeof(T)));
  }

  /// Gives back, on destruction, all that was taken since construction.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), chunk_(arena.chunk_), used_(arena.used_) {}
    ~Scope() {
      arena_.chunk_ = chunk_;
      arena_.used_ = used_;
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    size_t chunk_, used_;
  };

 private:
  uint8_t* take_bytes(size_t bytes);

  std::vector<os::Memory> chunks_;
  size_t chunk_ = 0;  // the chunk being filled
  size_t used_ = 0;   // bytes taken from it
};

struct Context {
  /// threads: 0 for all usable cores. nodes: empty, or the NUMA node of each worker in place of what
  /// the system says, for tests of slicing.
  explicit Context(int threads, std::vector<int> nodes = {});

  /// Held by whoever runs operators: pool and arena serve one caller at a time. Recursive, because a
  /// step may call out to Python, whose modules call operators of the same context.
  os::RecursiveMutex busy;
  Pool pool;
  ThreadTuner tuner;
  const KernelTable& kernels;
  Arena arena;
  WeightMemory weights;
  /// What the operator after the one that runs reads first; set by whoever runs them in a row.
  std::span<const Matrix* const> next = {};
  PhaseTimes* phases = nullptr;  // set while a step's time is taken apart
};

/// Number of pieces `items` equal units are cut into: enough for stealing to even out a late
/// worker, large enough that each piece is worth a hand-off.
int64_t pieces_for(const Context& context, int64_t items, int64_t smallest);

/// Half-open range of piece `index` of `pieces` over [0, items).
struct Range {
  int64_t begin, end;
};
inline Range piece(int64_t items, int64_t pieces, int64_t index) {
  return {items * index / pieces, items * (index + 1) / pieces};
}

}  // namespace kt::cpu
