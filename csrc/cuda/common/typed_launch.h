// A kernel for each type of floats, chosen by what the host was given: 0 float, 1 f16, 2 bf16.
#pragma once

#include "base/error.h"
#include "cuda/common/device.h"

namespace kt::cuda {

/// Launches Kernel<T>. Throws InvalidArgument for a type that does not exist; what: of whom.
template <template <class> class Kernel, class Params>
void launch_typed(int type, const char* what, const LaunchShape& shape, const Params& p) {
  switch (type) {
    case 0:
      return launch<Kernel<float>>(shape, p, p.stream);
    case 1:
      return launch<Kernel<half_t>>(shape, p, p.stream);
    case 2:
      return launch<Kernel<bf16_t>>(shape, p, p.stream);
    default:
      throw InvalidArgument(concat(what, " of type ", type, ": 0 float, 1 f16, 2 bf16"));
  }
}

}  // namespace kt::cuda
