// What benchmarks ask of the core.
#include <pybind11/stl.h>

#include <memory>
#include <string>

#include "bind/buffers.h"
#include "bind/register.h"
#include "cpu/ops/kernel_meter.h"
#include "cpu/ops/limits.h"
#include "quant/formats.h"

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

  const auto running = [](double (cpu::LimitMeter::*measure)()) {
    return [measure](cpu::LimitMeter& meter, cpu::Context& context) {
      const Running running(context);
      return (meter.*measure)();
    };
  };
  py::class_<cpu::LimitMeter>(module, "LimitMeter",
                              "The limits of measure_limits, one pass at a time on `bytes` of memory.")
      .def(py::init([](cpu::Context& context, int64_t bytes) {
             const Running running(context);
             return std::make_unique<cpu::LimitMeter>(context, bytes);
           }),
           py::arg("context"), py::arg("bytes") = int64_t{1} << 27, py::keep_alive<1, 2>())
      .def("read_gbps", running(&cpu::LimitMeter::read_gbps), py::arg("context"))
      .def("int8_tops", running(&cpu::LimitMeter::int8_tops), py::arg("context"))
      .def("bf16_tflops", running(&cpu::LimitMeter::bf16_tflops), py::arg("context"));

  py::class_<cpu::KernelMeter>(module, "KernelMeter",
                               "Times products of any format on `bytes` of memory.")
      .def(py::init([](cpu::Context& context, int64_t bytes) {
             const Running running(context);
             return std::make_unique<cpu::KernelMeter>(context, bytes);
           }),
           py::arg("context"), py::arg("bytes") = int64_t{1} << 30, py::keep_alive<1, 2>())
      .def(
          "run",
          [](cpu::KernelMeter& meter, cpu::Context& context, const std::string& format,
             int64_t rows, int64_t cols, int tokens, int rounding, int windows) {
            KT_CHECK(rounding >= 0 && rounding <= 2, "rounding: mark ", rounding);
            const int id = quant::format_id(format);
            cpu::KernelMeter::Times times;
            {
              const Running running(context);
              times = meter.run(id, rows, cols, tokens, static_cast<cpu::Rounding>(rounding),
                                windows);
            }
            py::dict out;
            out["bytes"] = times.bytes;
            out["product"] = times.product;
            out["read"] = times.read;
            return out;
          },
          py::arg("context"), py::arg("format"), py::arg("rows"), py::arg("cols"),
          py::arg("tokens"), py::arg("rounding"), py::arg("windows"),
          "Seconds of `windows` products with one matrix each, and of reading as many bytes between "
          "them.");
}

}  // namespace kt::bind
