// Runs a kernel on the CPU: every thread of a block is a fibre, blocks run one after another.
//
// Fibres are switched by hand, in an order that depends only on `Options::order`, so a run is
// deterministic and a second order can be tried. A warp's collective (shuffle, mma, ...) is a
// rendezvous: the last lane to arrive computes for all. What is detected, as EmulationError naming
// kernel line, block and thread:
//
//   divergent barriers       a thread is done, or at another barrier, while others wait
//   shared memory            out of bounds, misaligned, read before written, or written and read by
//                            two threads with no barrier between (per two bytes)
//   asynchronous copies      bytes arrive only at async_wait; reading or overwriting them before is
//                            an error
//   device memory            any access outside a Buffer, misaligned, or to what nobody wrote
//
// Blocks never overlap: a kernel whose blocks wait for one another cannot run here (and must not on
// a GPU either, where nothing promises that all are resident).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "cuda/common/types.h"

namespace kt::cuda::emulated {

class EmulationError : public Error {
 public:
  using Error::Error;
};

enum class Order : uint8_t { kForward, kReverse, kShuffled };

struct Options {
  Order order = Order::kForward;
  int arch = 90;  // its shared memory; 75: asynchronous copies are plain ones
};

/// Options of the launches that follow on this thread.
Options& options();

/// Kernel launches and fibre switches so far on this thread.
struct Counts {
  int64_t launches = 0, blocks = 0, switches = 0;
};
Counts& counts();

/// Where in a kernel's source a call stands.
struct Site {
  const char* file;
  int line;
};

/// Device memory kernels may touch: registered while it lives, bytes unwritten until written.
class RawBuffer {
 public:
  explicit RawBuffer(size_t bytes);
  ~RawBuffer();
  RawBuffer(const RawBuffer&) = delete;
  RawBuffer& operator=(const RawBuffer&) = delete;
  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  void mark_written(size_t begin, size_t bytes);
  /// Whether every byte of the range was written.
  bool written(size_t begin, size_t bytes) const;

 private:
  friend class Registry;
  std::vector<uint8_t> memory_;
  std::vector<uint8_t> shadow_;  // 1: written
  uint8_t* data_;
  size_t size_;
};

/// A typed buffer for tests.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count) : raw_(count * sizeof(T)) {}
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    for (size_t i = 0; i < values.size(); ++i) data()[i] = values[i];
    raw_.mark_written(0, raw_.size());
  }
  T* data() const { return reinterpret_cast<T*>(raw_.data()); }
  size_t size() const { return raw_.size() / sizeof(T); }
  /// What kernels wrote; throws EmulationError at the first element nobody did.
  std::vector<T> values() const {
    for (size_t i = 0; i < size(); ++i)
      if (!raw_.written(i * sizeof(T), sizeof(T)))
        throw EmulationError(concat("element ", i, " of ", size(), " was not written"));
    return std::vector<T>(data(), data() + size());
  }
  bool written(size_t i) const { return raw_.written(i * sizeof(T), sizeof(T)); }
  RawBuffer& raw() { return raw_; }

 private:
  RawBuffer raw_;
};

/// Runs `body` for every thread of every block. kernel: a function's signature with its template
/// arguments, [with Kernel = ...]. Throws EmulationError.
///
/// Where the environment's KT_EMULATED_KERNELS names a file, the process appends a line for each
/// kernel at its end: kernel, launches, blocks, seconds (tests/tools/kernel_table.py adds them up).
void run_grid(const char* kernel, const LaunchShape& shape, const std::function<void()>& body);

// ---- what device_emulated.h builds the device functions from ----

struct Place {
  unsigned thread, block_x, block_y, block_z, grid_x, grid_y, grid_z, threads;
};
const Place& place();

void block_barrier(Site site);
void warp_barrier(Site site);

using Compute = void (*)(const void* const* in, void* const* out);
/// All 32 lanes meet; the last one runs compute over every lane's in and out.
void collective(const void* in, void* out, Compute compute, Site site);

/// Address of a byte of dynamic shared memory (not checked yet).
uint8_t* shared_base();
void check_shared(const void* address, size_t bytes, size_t alignment, bool write, Site site);
/// A write that others may make too before the next barrier.
void check_shared_atomic(const void* address, size_t bytes, size_t alignment, Site site);
void check_global(const void* address, size_t bytes, size_t alignment, bool write, Site site);
/// `bytes` from `source` (none: zeros) to shared memory, done at the wait for its group.
void async_copy(void* target, const void* source, size_t bytes, bool zeros, Site site);
void async_commit();
void async_wait(int groups_left);

}  // namespace kt::cuda::emulated
