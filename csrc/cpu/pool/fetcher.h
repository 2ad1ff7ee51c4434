// Reading ahead in idle moments: between two jobs one worker prepares the next while the others wait,
// and memory would do nothing.
#pragma once

#include <atomic>
#include <cstdint>

namespace kt::cpu {

/// What a worker will read, as whoever gives out the jobs foresees it. Written by that thread alone.
class alignas(64) Ahead {
 public:
  void set(const uint8_t* data, int64_t bytes) {
    data_.store(data, std::memory_order_relaxed);
    bytes_.store(bytes, std::memory_order_relaxed);
    turn_.fetch_add(1, std::memory_order_release);
  }

 private:
  friend class Fetcher;
  std::atomic<const uint8_t*> data_{nullptr};
  std::atomic<int64_t> bytes_{0};
  std::atomic<uint32_t> turn_{0};  // counts what was said
};

/// A worker's progress with what it expects. Fetching faults nowhere, whatever the address, so it does
/// no harm that a word may be newer than the one before it.
class Fetcher {
 public:
  /// Asks for a few lines more; false: there is nothing left.
  bool step(const Ahead& ahead) {
    const uint32_t turn = ahead.turn_.load(std::memory_order_acquire);
    if (turn != turn_) {
      turn_ = turn;
      at_ = ahead.data_.load(std::memory_order_relaxed);
      left_ = ahead.bytes_.load(std::memory_order_relaxed);
    }
    if (left_ <= 0) return false;
    constexpr int kLines = 4, kLine = 64;
    for (int i = 0; i < kLines; ++i) __builtin_prefetch(at_ + i * kLine, 0, 2);
    at_ += kLines * kLine;
    left_ -= kLines * kLine;
    return true;
  }

 private:
  uint32_t turn_ = 0;
  const uint8_t* at_ = nullptr;
  int64_t left_ = 0;
};

}  // namespace kt::cpu
