// What benchmarks ask of the core.
#include "bind/buffers.h"
#include "bind/register.h"
#include "cpu/ops/limits.h"

namespace py = pybind11;

namespace kt::bind {

void register_bench(py::module_& module) {
  module.def(
      "measure_limits",
      [](cpu::Context& context, int64_t bytes, int passes) {
        cpu::Limits limits;
        {
          const Running running(context);
          limits = cpu::measure_limits(context, bytes, passes);
        }
        py::dict out;
        out["threads"] = limits.threads;
        out["isa"] = context.kernels.name;
        out["read_gbps"] = limits.read_gbps;
        out["int8_tops"] = limits.int8_tops;
        out["bf16_tflops"] = limits.bf16_tflops;
        out["bf16_is_float32"] = limits.bf16_is_float32;
        return out;
      },
      py::arg("context"), py::arg("bytes") = int64_t{1} << 30, py::arg("passes") = 8,
      "What the machine can do at most with the context's threads and instruction set: read_gbps "
      "(1e9 bytes/s, huge pages, from `bytes` of memory), int8_tops, bf16_tflops (of float32 where "
      "bf16_is_float32). Best of `passes`.");
}

}  // namespace kt::bind
