// Weight formats: the list, and conversion to and from float.
#include "bind/buffers.h"
#include "bind/register.h"
#include "quant/convert.h"
#include "quant/formats.h"

namespace py = pybind11;

namespace kt::bind {

void register_quant(py::module_& module) {
  module.def(
      "formats",
      [] {
        py::list rows;
        quant::for_each_format([&]<class F>() {
          py::dict row;
          row["name"] = F::kName;
          row["gguf_id"] = F::kGgufId;
          row["values_per_block"] = F::kValues;
          row["bytes_per_block"] = sizeof(typename F::Block);
          rows.append(row);
        });
        return rows;
      },
      "Every supported weight format: name, gguf_id, values_per_block, bytes_per_block.");

  module.def(
      "dequantize",
      [](const py::buffer& data, const std::string& format) {
        const auto bytes = bytes_of(data, "dequantize");
        const int id = quant::format_id(format);
        py::array_t<float> out(quant::value_count(id, bytes.size()));
        quant::dequantize(id, bytes, {out.mutable_data(), static_cast<size_t>(out.size())});
        return out;
      },
      py::arg("data"), py::arg("format"),
      "Blocks of `format` -> flat float32 array, bit-exact with the GGUF definition of the format.");
}

}  // namespace kt::bind
