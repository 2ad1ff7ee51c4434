// Matrices of int4 and int8 checkpoints (GPTQ, AWQ, compressed-tensors): their codes as they are,
// or their values in another format.
#include <pybind11/stl.h>

#include <memory>

#include "bind/buffers.h"
#include "bind/register.h"
#include "bind/requantized.h"
#include "quant/formats.h"
#include "quant/packed.h"
#include "quant/quantize.h"

namespace py = pybind11;

namespace kt::bind {
namespace {

using quant::Packed;

// The matrix, and what its spans point into.
struct Held {
  Packed matrix;
  std::vector<py::buffer_info> buffers;  // nobody resizes them
  std::vector<IntArray> arrays;
};

template <class T>
T one_of(const std::string& name, std::initializer_list<std::pair<const char*, T>> choices,
         const char* what) {
  for (const auto& [known, value] : choices) {
    if (name == known) return value;
  }
  throw InvalidArgument(concat(what, " '", name, "' is not known"));
}

std::unique_ptr<Held> hold(const std::string& layout, int bits, size_t n, size_t k, size_t groups,
                           const py::buffer& codes, const py::buffer& scales,
                           const std::string& scale_type, const std::optional<py::buffer>& zeros,
                           int zero_offset, const std::optional<IntArray>& group_of,
                           const std::optional<IntArray>& rows) {
  using Layout = Packed::Layout;
  using Scale = Packed::Scale;
  auto held = std::make_unique<Held>();
  Packed& m = held->matrix;
  m.layout = one_of<Layout>(
      layout, {{"rows", Layout::kRows}, {"gptq", Layout::kGptq}, {"awq", Layout::kAwq}}, "layout");
  m.scale_type = one_of<Scale>(
      scale_type, {{"f16", Scale::kF16}, {"bf16", Scale::kBf16}, {"f32", Scale::kF32}},
      "type of scales");
  m.bits = bits;
  m.n = n;
  m.k = k;
  m.groups = groups;
  m.zero_offset = zero_offset;
  const auto bytes = [&](const py::buffer& buffer, const char* what) {
    held->buffers.push_back(buffer.request());
    return bytes_of(buffer, what);
  };
  m.codes = bytes(codes, "codes");
  m.scales = bytes(scales, "scales");
  if (zeros) m.zeros = bytes(*zeros, "zero points");
  const auto integers = [&](const std::optional<IntArray>& array) -> std::span<const int32_t> {
    if (!array) return {};
    held->arrays.push_back(*array);
    return {array->data(), static_cast<size_t>(array->size())};
  };
  m.group_of = integers(group_of);
  m.rows = integers(rows);
  quant::check_packed(m);
  return held;
}

py::tuple convert(const Held& held, const std::string& to, size_t first, size_t count, bool keep,
                  int threads) {
  const Packed& m = held.matrix;
  quant::Target target;
  target.group128 = to == "int4g128";
  target.gguf_id = quant::format_id(target.group128 ? "q4_0" : to);
  KT_CHECK(first <= m.n && count <= m.n - first, "rows ", first, " .. ", first + count, " of ",
           m.n);
  py::array_t<uint8_t> out({count, quant::row_bytes(target.gguf_id, m.k)});
  const std::span<uint8_t> bytes{out.mutable_data(), static_cast<size_t>(out.size())};
  quant::Requantized result;
  {
    const py::gil_scoped_release unlocked;
    if (keep) {
      result = quant::keep_codes(m, first, count, target.gguf_id, bytes, threads);
    } else {
      quant::Source source;
      source.gguf_id = quant::Source::kPacked;
      source.packed = &m;
      source.first = first;
      result = quant::requantize(source, count, m.k, target, {}, bytes, threads);
    }
  }
  return py::make_tuple(out, facts_of(result));
}

py::array_t<float> to_floats(const Held& held, size_t first, size_t count) {
  py::array_t<float> out({count, held.matrix.k});
  const std::span<float> values{out.mutable_data(), static_cast<size_t>(out.size())};
  const py::gil_scoped_release unlocked;
  quant::packed_to_floats(held.matrix, first, count, values);
  return out;
}

}  // namespace

void register_packed(py::module_& module) {
  py::class_<Held>(module, "PackedMatrix",
                   "A matrix [n, k] of an int4 or int8 checkpoint: codes packed into 32-bit words, "
                   "value = scale * (code - zero). See csrc/quant/packed.h for the layouts \"rows\" "
                   "(compressed-tensors), \"gptq\" and \"awq\".")
      .def(py::init(&hold), py::kw_only(), py::arg("layout"), py::arg("bits"), py::arg("n"),
           py::arg("k"), py::arg("groups"), py::arg("codes"), py::arg("scales"),
           py::arg("scale_type"), py::arg("zeros") = py::none(), py::arg("zero_offset") = 0,
           py::arg("group_of") = py::none(), py::arg("rows") = py::none(),
           "Buffers are used where they lie. group_of [k]: the group of each column, where groups "
           "are not runs; rows [n]: where each row is stored. Raises: ValueError.")
      .def("can_keep", [](const Held& held, const std::string& format) {
             return quant::can_keep_codes(held.matrix, quant::format_id(format));
           }, py::arg("format"), "Whether blocks of q4_0, q4_1 or q8_0 can have its very codes.")
      .def("convert", &convert, py::arg("to"), py::arg("first"), py::arg("count"), py::arg("keep"),
           py::arg("threads") = 1,
           "Rows first .. first + count -> (uint8 [count, row_bytes] of `to`, {error, power, "
           "largest, not_finite, out_of_range}). keep: with the codes as they are; else the values "
           "are quantised anew, as requantize() does. Raises: FormatError for a scale that is not "
           "finite.")
      .def("to_floats", &to_floats, py::arg("first"), py::arg("count"),
           "Rows first .. first + count -> float32 [count, k].");
}

}  // namespace kt::bind
