// Memory of a model on the card, behind an interface: cudaMalloc and pinned host memory, or, in the
// tests, buffers that the emulator watches. Memory is taken while a model is built, never by a
// step; bring, arrived, release and finish are what steps use.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"

namespace kt::cuda {

class Memory {
 public:
  virtual ~Memory() = default;
  /// On the card, 256-byte aligned. Throws Error with the bytes where there is no room.
  virtual void* device(size_t bytes) = 0;
  /// Bytes that device() can still give, as far as is known.
  virtual size_t room() const { return SIZE_MAX; }
  /// Host memory that kernels reach by the same address, zeroed.
  virtual void* mapped(size_t bytes) = 0;
  /// Host to card.
  virtual void upload(void* to, const void* from, size_t bytes) = 0;
  /// Makes host memory, whole pages, such that the card reads it by itself -> "", or why it cannot
  /// be. Pages are pinned once.
  virtual std::string pin(const void* at, size_t bytes) = 0;
  /// What pin() was given.
  virtual void unpin(const void* at) noexcept = 0;
  /// Before bring(), by each model that streams. staged: not everything of it is pinned -> bytes of
  /// pinned host memory that this took.
  virtual size_t prepare_copies(bool staged) = 0;
  /// A piece of host memory on its way to the card.
  struct Transfer {
    void* to;
    const void* from;
    size_t bytes;
    bool pinned;
  };
  /// Brings pieces to the card beside what streams compute. half: 0 or 1, of a ring: begins when
  /// release() of the last use of that half is reached.
  virtual void bring(const std::vector<Transfer>& pieces, int half) = 0;
  /// What follows on `stream` finds there what was brought last to that half.
  virtual void arrived(int half, void* stream) = 0;
  virtual void release(int half, void* stream) = 0;
  /// Waits for everything that was brought so far: host memory may go then.
  virtual void finish_copies() noexcept = 0;
  /// Waits for everything that `stream` was given.
  virtual void finish(void* stream) = 0;
  /// Card to card.
  virtual void copy(void* to, const void* from, size_t bytes) = 0;

  template <class T>
  T* take(size_t count) {
    return static_cast<T*>(device(count * sizeof(T)));
  }
  template <class T>
  T* take_mapped(size_t count) {
    return static_cast<T*>(mapped(count * sizeof(T)));
  }
  template <class T>
  T* put(const std::vector<T>& values) {
    T* const memory = take<T>(values.size());
    upload(memory, values.data(), values.size() * sizeof(T));
    return memory;
  }
};

/// Of so many free bytes of a card those that models take where they can do with less: an eighth,
/// at most 1 GiB, stays for the driver, which loads kernels and keeps graphs there. Once for a
/// card: LimitedMemory::shared_room.
constexpr size_t usable_room(size_t free) {
  return free - std::min(free / 8, size_t{1} << 30);
}

/// Divides room among users that want so much each -> what each gets: no more than it wants, and no
/// less than another where that is less.
std::vector<size_t> share_out(size_t room, const std::vector<size_t>& wanted);

/// Another memory's, but no more on the card than a number of bytes (KT_VRAM_LIMIT).
class LimitedMemory : public Memory {
 public:
  LimitedMemory(Memory& memory, size_t limit) : memory_(memory), limit_(limit) {}
  void* device(size_t bytes) override {
    if (bytes > limit_ - taken_)
      throw Error(
          concat("no room on the GPU for ", bytes, " bytes more: ", taken_, " of ", limit_,
                 " are taken; give fewer modules this device in the rules, or a shorter cache "
                 "(--cache_lens), or let `ktransformers fit` place them"));
    void* const memory = memory_.device(bytes);
    taken_ += bytes;
    return memory;
  }
  void* mapped(size_t bytes) override {
    void* const memory = memory_.mapped(bytes);
    mapped_ += bytes;
    return memory;
  }
  void upload(void* to, const void* from, size_t bytes) override {
    memory_.upload(to, from, bytes);
  }
  std::string pin(const void* at, size_t bytes) override { return memory_.pin(at, bytes); }
  void unpin(const void* at) noexcept override { memory_.unpin(at); }
  size_t prepare_copies(bool staged) override {
    const size_t taken = memory_.prepare_copies(staged);
    mapped_ += taken;
    return taken;
  }
  void bring(const std::vector<Transfer>& pieces, int half) override {
    memory_.bring(pieces, half);
  }
  void arrived(int half, void* stream) override { memory_.arrived(half, stream); }
  void finish_copies() noexcept override { memory_.finish_copies(); }
  void finish(void* stream) override { memory_.finish(stream); }
  void release(int half, void* stream) override { memory_.release(half, stream); }
  void copy(void* to, const void* from, size_t bytes) override { memory_.copy(to, from, bytes); }
  size_t room() const override { return limit_ - taken_; }
  /// What all users of the card can share: room() but for the driver's part, which is what it was
  /// when this was first asked for, however many ask.
  size_t shared_room() {
    if (!reserve_) reserve_ = room() - usable_room(room());
    return room() - std::min(room(), *reserve_);
  }
  size_t taken() const { return taken_; }
  size_t limit() const { return limit_; }
  /// Of host memory.
  size_t mapped() const { return mapped_; }

 private:
  Memory& memory_;
  size_t limit_, taken_ = 0, mapped_ = 0;
  std::optional<size_t> reserve_;
};

}  // namespace kt::cuda
