// Weight formats: the list, and conversion to and from float.
#include <pybind11/stl.h>

#include "bind/buffers.h"
#include "bind/register.h"
#include "bind/requantized.h"
#include "quant/convert.h"
#include "quant/formats.h"
#include "quant/quantize.h"
#include "quant/refused.h"
#include "quant/requantize.h"

namespace py = pybind11;

namespace kt::bind {
namespace {

py::list formats() {
  py::list rows;
  quant::for_each_format([&]<class F>() {
    py::dict row;
    row["name"] = F::kName;
    row["gguf_id"] = F::kGgufId;
    row["values_per_block"] = F::kValues;
    row["bytes_per_block"] = sizeof(typename F::Block);
    row["group"] = F::kGroup;
    row["can_quantize"] = quant::can_quantize(F::kGgufId);
    rows.append(row);
  });
  return rows;
}

py::dict refused_formats() {
  py::dict lines;
  for (const auto* row = quant::refused_formats(); row->name; ++row)
    lines[py::int_(row->gguf_id)] = quant::refused_format(row->gguf_id);
  return lines;
}

py::array_t<float> dequantize(const py::buffer& data, const std::string& format) {
  const auto bytes = bytes_of(data, "dequantize");
  const int id = quant::format_id(format);
  py::array_t<float> out(quant::value_count(id, bytes.size()));
  const std::span<float> values{out.mutable_data(), static_cast<size_t>(out.size())};
  const py::buffer_info held = data.request();  // nobody resizes it while other threads run
  const py::gil_scoped_release unlocked;
  quant::dequantize(id, bytes, values);
  return out;
}

// Floats are converted and made contiguous where they are not.
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

py::array_t<uint8_t> quantize(const Floats& array, const std::string& format,
                              const std::optional<Floats>& importance) {
  KT_CHECK(array.ndim() == 2, "quantize: a matrix [n, k] is needed, not ", array.ndim(), " axes");
  const int id = quant::format_id(format);
  const size_t n = array.shape(0), k = array.shape(1);
  py::array_t<uint8_t> out({n, quant::row_bytes(id, k)});
  const std::span<const float> x{array.data(), n * k};
  std::span<const float> weights;
  if (importance) weights = {importance->data(), static_cast<size_t>(importance->size())};
  const std::span<uint8_t> bytes{out.mutable_data(), static_cast<size_t>(out.size())};
  const py::gil_scoped_release unlocked;
  quant::quantize(id, x, k, weights, bytes);
  return out;
}

// A tensor's rows as a checkpoint has them; `scales` belong to format "fp8".
quant::Source source_of(const py::buffer& data, const std::string& format,
                        const std::optional<Floats>& scales, size_t block) {
  quant::Source source;
  source.gguf_id = format == "fp8" ? quant::Source::kFp8 : quant::format_id(format);
  source.bytes = bytes_of(data, "requantize");
  if (scales) source.scales = {scales->data(), static_cast<size_t>(scales->size())};
  source.block = block;
  return source;
}

py::tuple requantize(const py::buffer& data, const std::string& format, size_t n, size_t k,
                     const std::string& to, const std::optional<Floats>& importance,
                     const std::optional<Floats>& scales, size_t block, int threads) {
  const quant::Source source = source_of(data, format, scales, block);
  quant::Target target;
  target.group128 = to == "int4g128";
  target.gguf_id = quant::format_id(target.group128 ? "q4_0" : to);
  py::array_t<uint8_t> out({n, quant::row_bytes(target.gguf_id, k)});
  const std::span<uint8_t> bytes{out.mutable_data(), static_cast<size_t>(out.size())};
  std::span<const float> weights;
  if (importance) weights = {importance->data(), static_cast<size_t>(importance->size())};
  quant::Requantized result;
  {
    const py::buffer_info held = data.request();
    const py::gil_scoped_release unlocked;
    result = quant::requantize(source, n, k, target, weights, bytes, threads);
  }
  return py::make_tuple(out, facts_of(result));
}

py::array_t<float> to_floats(const py::buffer& data, const std::string& format, size_t n, size_t k,
                             const std::optional<Floats>& scales, size_t block) {
  const quant::Source source = source_of(data, format, scales, block);
  py::array_t<float> out({n, k});
  const std::span<float> values{out.mutable_data(), n * k};
  const py::buffer_info held = data.request();
  const py::gil_scoped_release unlocked;
  quant::to_floats(source, n, k, values);
  return out;
}

template <class T>
py::array_t<T> to_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::tuple unpack_ints(const py::buffer& data, const std::string& format) {
  const auto view = quant::integer_view(quant::format_id(format), bytes_of(data, "unpack_ints"));
  py::object min = py::none();
  if (!view.min.empty()) min = to_array(view.min);
  return py::make_tuple(to_array(view.u), to_array(view.scale), min, view.offset);
}

py::array_t<uint8_t> r16_pack(const py::buffer& data, const std::string& format, size_t rows) {
  const auto bytes = bytes_of(data, "r16_pack");
  const int id = quant::format_id(format);
  py::array_t<uint8_t> out(quant::r16_bytes(id, bytes.size(), rows));
  quant::r16_pack(id, bytes, rows, {out.mutable_data(), static_cast<size_t>(out.size())});
  return out;
}

py::array_t<uint8_t> r16_unpack(const py::buffer& data, const std::string& format, size_t rows) {
  const auto records = bytes_of(data, "r16_unpack");
  const int id = quant::format_id(format);
  KT_CHECK(rows > 0, "r16_unpack: rows=0");
  py::array_t<uint8_t> out(records.size() / ((rows + 15) / 16 * 16) * rows);
  quant::r16_unpack(id, records, rows, {out.mutable_data(), static_cast<size_t>(out.size())});
  return out;
}

}  // namespace

void register_quant(py::module_& module) {
  module.def("formats", &formats,
             "Every supported weight format: name, gguf_id, values_per_block, bytes_per_block, "
             "group (values that share a scale in the integer view, 0 where there is none) and "
             "can_quantize.");
  module.def("refused_formats", &refused_formats,
             "Weight types known by name but not supported: {gguf_id: 'name: why, what to do'}.");
  module.def("dequantize", &dequantize, py::arg("data"), py::arg("format"),
             "Blocks of `format` -> flat float32 array, bit-exact with the GGUF definition of the "
             "format.");
  module.def("quantize", &quantize, py::arg("array"), py::arg("format"),
             py::arg("importance") = py::none(),
             "float32 [n, k] -> uint8 [n, row_bytes] with little squared error; `importance` [k] "
             "weighs the columns. Releases the GIL: split rows over threads to use more cores.");
  module.def("requantize", &requantize, py::arg("data"), py::arg("format"), py::arg("n"),
             py::arg("k"), py::arg("to"), py::arg("importance") = py::none(),
             py::arg("scales") = py::none(), py::arg("block") = 128, py::arg("threads") = 1,
             "Rows [n, k] of `format` (or \"fp8\" with scales) -> (uint8 [n, row_bytes] of `to`, "
             "{error, power, largest, not_finite, out_of_range}). `to` may be \"int4g128\": q4_0 "
             "blocks with one symmetric scale for 128 values.");
  module.def("to_floats", &to_floats, py::arg("data"), py::arg("format"), py::arg("n"),
             py::arg("k"), py::arg("scales") = py::none(), py::arg("block") = 128,
             "Rows [n, k] of `format` (or \"fp8\" with scales) -> float32 [n, k].");
  module.def("unpack_ints", &unpack_ints, py::arg("data"), py::arg("format"),
             "Blocks of `format` -> (u, scale, min or None, offset) with value[i] = "
             "scale[i // group] * (u[i] - offset) + min[i // group].");
  module.def("r16_pack", &r16_pack, py::arg("data"), py::arg("format"), py::arg("rows"),
             "A matrix of `rows` rows of blocks -> the layout kernels read, rows padded to 16.");
  module.def("r16_unpack", &r16_unpack, py::arg("data"), py::arg("format"), py::arg("rows"),
             "The inverse of r16_pack.");
}

}  // namespace kt::bind
