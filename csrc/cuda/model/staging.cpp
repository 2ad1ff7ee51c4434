#include "cuda/model/staging.h"

#include <algorithm>
#include <cstring>

namespace kt::cuda {

void Staging::copy(void* to, const void* from, size_t bytes) {
  auto* target = static_cast<uint8_t*>(to);
  const auto* source = static_cast<const uint8_t*>(from);
  for (size_t done = 0; done < bytes;) {
    const size_t part = std::min(slot_bytes_, bytes - done);
    uint8_t* const slot = ring_ + next_ * slot_bytes_;
    queue_.wait(next_);
    std::memcpy(slot, source + done, part);
    queue_.send(target + done, slot, part);
    queue_.mark(next_);
    next_ = (next_ + 1) % slots_;
    done += part;
  }
}

}  // namespace kt::cuda
