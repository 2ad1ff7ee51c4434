// CUDA's status codes as errors of the core. Only for files nvcc compiles.
#pragma once

#include <cuda_runtime.h>

#include "base/error.h"

namespace kt::cuda {

/// A call of the CUDA runtime failed; the message carries the call, its size and CUDA's own text.
class CudaError : public Error {
 public:
  using Error::Error;
};

inline void check(cudaError_t status, const char* call, size_t bytes = 0) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // no call after this one is to report it again
  throw CudaError(bytes ? concat(call, " (", bytes, " bytes): ", cudaGetErrorString(status))
                        : concat(call, ": ", cudaGetErrorString(status)));
}

}  // namespace kt::cuda
