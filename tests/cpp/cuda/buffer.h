// Memory the kernels under test work on: the emulator's checked buffers, or, where the same tests
// are built for a real GPU (tests/gpu), pinned host memory that both sides reach.
#pragma once

#include "cuda/common/device.h"

#if defined(KT_TEST_ON_GPU)
#include <cuda_runtime.h>

#include <cstring>
#include <type_traits>

namespace kt::cuda {

/// Waits for what was launched; throws where it failed. Before data() is read.
inline void finish_launches() {
  const cudaError_t status = cudaDeviceSynchronize();
  if (status != cudaSuccess) throw Error(cudaGetErrorString(status));
}

template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count) : count_(count) {
    if (cudaHostAlloc(&memory_, count * sizeof(T) + 256, cudaHostAllocMapped) != cudaSuccess)
      throw Error("cudaHostAlloc failed");
    std::memset(memory_, 0xFF, count * sizeof(T) + 256);
  }
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    if (count_) std::memcpy(memory_, values.data(), count_ * sizeof(T));
  }
  ~Buffer() { cudaFreeHost(memory_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() const { return static_cast<T*>(memory_); }
  size_t size() const { return count_; }
  bool written(size_t i) const {
    if constexpr (std::is_integral_v<T>) return true;  // -1 is a value like any other
    uint8_t poison[sizeof(T)];
    std::memset(poison, 0xFF, sizeof poison);
    return std::memcmp(data() + i, poison, sizeof poison) != 0;
  }
  /// Waits for the GPU; throws where it failed, or left an element as it was.
  std::vector<T> values() const {
    finish_launches();
    return std::vector<T>(data(), data() + count_);
  }

 private:
  void* memory_ = nullptr;
  size_t count_;
};

}  // namespace kt::cuda

#else

namespace kt::cuda {
using emulated::Buffer;
inline void finish_launches() {}
}  // namespace kt::cuda

#endif
