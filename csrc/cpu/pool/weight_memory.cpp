#include "cpu/pool/weight_memory.h"

#include <algorithm>

namespace kt::cpu {

WeightMemory::Piece WeightMemory::take(size_t bytes, int node) {
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (bytes > kRegion / 2) {  // one of its own: it would leave a region half empty
    auto memory = std::make_shared<os::Memory>(bytes, node);
    uint8_t* data = memory->data();
    return {std::move(memory), data};
  }
  auto open = std::find_if(open_.begin(), open_.end(),
                           [&](const Region& region) { return region.node == node; });
  if (open == open_.end()) open = open_.insert(open, Region{node, nullptr, kRegion});
  if (kRegion - open->used < bytes) {
    open->memory = std::make_shared<os::Memory>(kRegion, node);
    open->used = 0;
  }
  uint8_t* data = open->memory->data() + open->used;
  open->used += bytes;
  return {open->memory, data};
}

}  // namespace kt::cpu
