#include "cpu/ops/context.h"

#include <algorithm>
#include <utility>

#include "cpu/isa.h"

namespace kt::cpu {

Context::Context(int threads, std::vector<int> nodes)
    : pool(threads, std::move(nodes)), tuner(pool.threads()), kernels(cpu::kernels()) {}

uint8_t* Arena::take_bytes(size_t bytes) {
  constexpr size_t kChunk = 16u << 20;
  bytes = (bytes + 63) & ~size_t{63};
  // A chunk too small for this request is passed over until the scope ends.
  while (chunk_ < chunks_.size() && chunks_[chunk_].size() - used_ < bytes) {
    ++chunk_;
    used_ = 0;
  }
  if (chunk_ == chunks_.size()) chunks_.emplace_back(std::max(bytes, kChunk));
  uint8_t* result = chunks_[chunk_].data() + used_;
  used_ += bytes;
  return result;
}

int64_t pieces_for(const Context& context, int64_t items, int64_t smallest) {
  const int threads = context.pool.threads();
  if (threads == 1) return 1;
  return std::clamp<int64_t>(items / std::max<int64_t>(smallest, 1), 1, int64_t{threads} * 8);
}

}  // namespace kt::cpu
