// Copies from memory that is not pinned: by the calling thread into a ring that is, and from there
// by the card, so that one piece is on its way while the next is being copied. cudaMemcpyAsync
// would do the same from pageable memory, but waits for each copy.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace kt::cuda {

/// The card's side of it.
class CopyQueue {
 public:
  virtual ~CopyQueue() = default;
  /// Host memory to the card, behind what was sent before; from stays until then.
  virtual void send(void* to, const void* from, size_t bytes) = 0;
  /// What was sent until now has left its slot when wait(slot) returns; at once where nothing was.
  virtual void mark(int slot) = 0;
  virtual void wait(int slot) = 0;
};

class Staging {
 public:
  static constexpr int kSlots = 4;
  /// A slot takes the card 0.2 ms at 20 GB/s: long beside what it takes to send it.
  static constexpr size_t kSlotBytes = size_t{4} << 20;

  /// ring: [slots, slot_bytes], pinned.
  Staging(CopyQueue& queue, uint8_t* ring, int slots = kSlots, size_t slot_bytes = kSlotBytes)
      : queue_(queue), ring_(ring), slots_(slots), slot_bytes_(slot_bytes) {}
  /// Returns when all of it is in the ring or on its way; from may go then.
  void copy(void* to, const void* from, size_t bytes);

 private:
  CopyQueue& queue_;
  uint8_t* ring_;
  int slots_, next_ = 0;
  size_t slot_bytes_;
};

}  // namespace kt::cuda
