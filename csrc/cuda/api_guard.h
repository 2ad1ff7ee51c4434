// How the C functions of api.h end: 0, or 1 with the reason kept for kt_cuda_error().
#pragma once

#include <exception>
#include <string>

namespace kt::cuda {

/// Of this thread's last failed call.
std::string& last_api_error();

/// Exceptions end here: callers are C.
template <class Body>
int guarded(Body body) {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    last_api_error() = error.what();
    return 1;
  }
}

}  // namespace kt::cuda
