// Checked access to the buffers Python hands over.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <span>
#include <string>

#include "base/error.h"
#include "cpu/ops/context.h"

namespace kt::bind {

// Arrays as the core wants them; another dtype or layout is converted on the way in.
using FloatArray = pybind11::array_t<float, pybind11::array::c_style | pybind11::array::forcecast>;
using IntArray = pybind11::array_t<int32_t, pybind11::array::c_style | pybind11::array::forcecast>;
using ByteArray = pybind11::array_t<uint8_t, pybind11::array::c_style | pybind11::array::forcecast>;

/// While it lives, other Python threads run, and this one alone uses the context.
class Running {
 public:
  explicit Running(cpu::Context& context) : lock_(context.busy) {}

 private:
  pybind11::gil_scoped_release release_;  // before the lock: its holder may be waiting for the GIL
  os::RecursiveLock lock_;
};

/// A read-only view of any C-contiguous buffer as bytes; throws InvalidArgument naming `what`.
inline std::span<const uint8_t> bytes_of(const pybind11::buffer& buffer, const char* what) {
  const pybind11::buffer_info info = buffer.request();
  pybind11::ssize_t expected = info.itemsize;
  for (pybind11::ssize_t axis = info.ndim - 1; axis >= 0; --axis) {
    KT_CHECK(info.shape[axis] <= 1 || info.strides[axis] == expected, what,
             ": the buffer must be contiguous in C order");
    expected *= info.shape[axis];
  }
  return {static_cast<const uint8_t*>(info.ptr), static_cast<size_t>(info.size * info.itemsize)};
}

}  // namespace kt::bind
