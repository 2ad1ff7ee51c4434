// Host memory that a card copies from by itself: pages of experts' weights, pinned while they are
// streamed. What cannot be pinned (a limit, a file's pages, an old kernel) is copied by way of a
// ring that is (staging.h).
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <string>
#include <vector>

#include "cuda/model/memory.h"

namespace kt::cuda {

struct HostRange {
  const uint8_t* at;
  size_t bytes;
};

/// Pieces as whole pages: ascending, and one where they share pages. Those that only adjoin stay
/// apart: one that is refused takes no other with it.
std::vector<HostRange> whole_pages(std::vector<HostRange> pieces, size_t page);

/// Pinned from construction to destruction.
class Pins {
 public:
  struct Report {
    size_t asked = 0, pinned = 0;  // bytes, of whole pages
    double seconds = 0;            // that it took
    std::string why;               // not all of it; empty: all
  };
  /// Pins what it can of pieces, at most most_bytes. A range that is refused is left out; after
  /// kMostRefusals of them, or kMostSeconds, it ends. Unwinds all of it where it throws.
  Pins(Memory& memory, std::vector<HostRange> pieces, size_t most_bytes);
  ~Pins() { release(); }
  Pins(const Pins&) = delete;
  Pins& operator=(const Pins&) = delete;

  const Report& report() const { return report_; }
  /// Whether all of a piece is pinned.
  bool has(const uint8_t* at, size_t bytes) const;

  /// A range that is refused for want of memory takes the driver as long as one that is not.
  static constexpr int kMostRefusals = 4;
  /// Pages of 4 KiB are pinned at a few GB/s; nobody should wait longer for a start.
  static constexpr double kMostSeconds = 60;

 private:
  void pin_all(const std::vector<HostRange>& ranges, size_t most_bytes);
  void release() noexcept;

  Memory& memory_;
  std::vector<HostRange> pinned_;  // ascending
  Report report_;
};

}  // namespace kt::cuda
