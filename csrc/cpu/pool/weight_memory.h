// Where weights live: regions of huge pages, each on one node, handed out from front to back.
//
// A model has thousands of matrices of a megabyte or less; in allocations of their own they would
// sit on 4 KiB pages, which cost a sixth of the read bandwidth. A region goes back to the system
// when the last matrix in it does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/os.h"

namespace kt::cpu {

class WeightMemory {
 public:
  /// Zeroed memory and what keeps it: `data` is valid as long as `region` is held.
  struct Piece {
    std::shared_ptr<const os::Memory> region;
    uint8_t* data = nullptr;
  };

  static constexpr size_t kAlignment = 4096;  // of every piece; a page, as file maps have it

  /// `bytes` on a node (its number, or -1 for wherever it is first written). Not thread-safe: the
  /// context's user calls it. Throws SystemError.
  Piece take(size_t bytes, int node);

 private:
  // Large enough that the last, half empty huge page does not count; only what is written is used.
  static constexpr size_t kRegion = size_t{64} << 20;

  struct Region {
    int node;
    std::shared_ptr<os::Memory> memory;
    size_t used;
  };
  std::vector<Region> open_;  // one per node
};

}  // namespace kt::cpu
