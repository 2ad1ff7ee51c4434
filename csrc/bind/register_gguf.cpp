// GGUF files: reading (zero-copy) and writing.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "base/os_file.h"
#include "bind/buffers.h"
#include "bind/register.h"
#include "gguf/cursor.h"
#include "gguf/file.h"
#include "gguf/model_check.h"
#include "gguf/writer.h"

namespace py = pybind11;

namespace kt::bind {
namespace {

using gguf::Value;
using gguf::ValueType;

// Bytes that are no UTF-8 (byte tokens of a vocabulary) survive as surrogates, as with file names.
py::str to_str(std::string_view text) {
  PyObject* str =
      PyUnicode_DecodeUTF8(text.data(), static_cast<py::ssize_t>(text.size()), "surrogateescape");
  if (str == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(str);
}

std::string from_str(const py::handle& object, const char* what) {
  if (PyBytes_Check(object.ptr())) return py::reinterpret_borrow<py::bytes>(object);
  KT_CHECK(PyUnicode_Check(object.ptr()), what, ": must be str or bytes");
  PyObject* bytes = PyUnicode_AsEncodedString(object.ptr(), "utf-8", "surrogateescape");
  if (bytes == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::bytes>(bytes);
}

// Calls visit.template operator()<T>() with the C++ type of a number in a file.
template <class Visit>
auto visit_number(ValueType type, Visit&& visit) {
  switch (type) {
    case ValueType::kU8:
      return visit.template operator()<uint8_t>();
    case ValueType::kI8:
      return visit.template operator()<int8_t>();
    case ValueType::kU16:
      return visit.template operator()<uint16_t>();
    case ValueType::kI16:
      return visit.template operator()<int16_t>();
    case ValueType::kU32:
      return visit.template operator()<uint32_t>();
    case ValueType::kI32:
      return visit.template operator()<int32_t>();
    case ValueType::kF32:
      return visit.template operator()<float>();
    case ValueType::kBool:
      return visit.template operator()<bool>();
    case ValueType::kU64:
      return visit.template operator()<uint64_t>();
    case ValueType::kI64:
      return visit.template operator()<int64_t>();
    case ValueType::kF64:
      return visit.template operator()<double>();
    case ValueType::kString:
    case ValueType::kArray:
      break;
  }
  throw InvalidArgument("value type is not a number");
}

py::object to_python(const Value& value) {
  if (value.element == ValueType::kString) {
    if (!value.is_array()) {
      return to_str({reinterpret_cast<const char*>(value.bytes.data()), value.bytes.size()});
    }
    py::list list(value.count);
    size_t i = 0;
    gguf::for_each_string(value, [&](std::string_view text) { list[i++] = to_str(text); });
    return list;
  }
  return visit_number(value.element, [&]<class T>() -> py::object {
    if (value.is_array()) {
      py::array_t<T> array(static_cast<py::ssize_t>(value.count));
      if (value.count > 0) memcpy(array.mutable_data(), value.bytes.data(), value.bytes.size());
      return array;
    }
    T number;
    memcpy(&number, value.bytes.data(), sizeof number);
    return py::cast(number);
  });
}

// "u32", "[f32]"
std::string type_text(const Value& value) {
  const std::string element = gguf::value_type_name(value.element);
  return value.is_array() ? "[" + element + "]" : element;
}

// A Python value as the bytes of a Value of the type `text` names; `bytes` owns them.
Value encode(const std::string& text, const py::object& object, std::string& bytes) {
  Value value;
  const bool is_array = text.size() > 2 && text.front() == '[' && text.back() == ']';
  const std::string name = is_array ? text.substr(1, text.size() - 2) : text;
  uint32_t id = 0;
  while (id < gguf::kNumValueTypes && name != gguf::value_type_name(static_cast<ValueType>(id)))
    ++id;
  KT_CHECK(
      id < gguf::kNumValueTypes && name != "array", "value type '", text,
      "' is unknown; known are u8 i8 u16 i16 u32 i32 u64 i64 f32 f64 bool string, and each in []");
  value.element = static_cast<ValueType>(id);
  value.type = is_array ? ValueType::kArray : value.element;

  const auto append = [&](const py::handle& item) {
    if (value.element == ValueType::kString) {
      const std::string chars = from_str(item, "string");
      if (is_array) {
        const uint64_t length = chars.size();
        bytes.append(reinterpret_cast<const char*>(&length), sizeof length);
      }
      bytes += chars;
      return;
    }
    visit_number(value.element, [&]<class T>() {
      const T number = item.cast<T>();
      bytes.append(reinterpret_cast<const char*>(&number), sizeof number);
    });
  };
  if (!is_array) {
    append(object);
  } else if (value.element != ValueType::kString && py::isinstance<py::array>(object)) {
    visit_number(value.element, [&]<class T>() {
      const auto array = py::array_t<T, py::array::c_style>::ensure(object);
      if (!array) throw py::error_already_set();
      value.count = static_cast<uint64_t>(array.size());
      bytes.assign(reinterpret_cast<const char*>(array.data()), sizeof(T) * array.size());
    });
  } else {
    value.count = 0;
    for (const py::handle item : object) {
      append(item);
      ++value.count;
    }
  }
  value.bytes = {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()};
  return value;
}

const Value& value_of(const gguf::File& file, const std::string& key) {
  const Value* value = file.find(key);
  if (value == nullptr) throw py::key_error(key);
  return *value;
}

void register_file(py::module_& module) {
  py::class_<gguf::File, std::shared_ptr<gguf::File>>(
      module, "GgufFile", "One GGUF file, or the parts of a split one in order, mapped read-only.")
      .def(py::init([](const std::vector<std::string>& paths) {
             os::report_lost_pages();
             return std::make_shared<gguf::File>(paths);
           }),
           py::arg("paths"))
      .def("keys",
           [](const gguf::File& self) {
             py::list list;
             for (const gguf::Key& key : self.keys()) list.append(to_str(key.name));
             return list;
           })
      .def("has",
           [](const gguf::File& self, const std::string& key) { return self.find(key) != nullptr; })
      .def(
          "value",
          [](const gguf::File& self, const std::string& key) {
            return to_python(value_of(self, key));
          },
          "int, float, bool, str, a list of str or a 1-d array of numbers. Raises: KeyError.")
      .def(
          "value_type",
          [](const gguf::File& self, const std::string& key) {
            return type_text(value_of(self, key));
          },
          "The type as GgufWriter.add takes it: 'u32', '[string]', ... Raises: KeyError.")
      .def(
          "count",
          [](const gguf::File& self, const std::string& key) { return value_of(self, key).count; },
          "Elements of an array without making it; 1 for other values. Raises: KeyError.")
      .def(
          "tensors",
          [](const gguf::File& self) {
            py::list list;
            for (const gguf::TensorRef& ref : self.tensors()) {
              const gguf::Tensor& tensor = *ref.tensor;
              py::tuple shape(tensor.num_dims);
              for (int i = 0; i < tensor.num_dims; ++i) {
                shape[tensor.num_dims - 1 - i] = tensor.ne[i];
              }
              list.append(py::make_tuple(to_str(tensor.name), tensor.type->name, shape,
                                         tensor.bytes, ref.part, tensor.offset));
            }
            return list;
          },
          "(name, type, shape, bytes, part, offset in its file) of every tensor; numpy axis order.")
      .def(
          "data",
          [](const std::shared_ptr<gguf::File>& self, const std::string& name) {
            const auto bytes = self->data(self->tensor(name));
            py::array_t<uint8_t> view({static_cast<py::ssize_t>(bytes.size())}, {1}, bytes.data(),
                                      py::cast(self));
            view.attr("flags").attr("writeable") = false;
            return view;
          },
          py::arg("name"), "A tensor's bytes: a read-only view that keeps the map alive.")
      .def(
          "advise",
          [](const gguf::File& self, const std::string& name, const std::string& advice) {
            const std::pair<const char*, os::Advice> kNames[] = {
                {"normal", os::Advice::kNormal},
                {"sequential", os::Advice::kSequential},
                {"willneed", os::Advice::kWillNeed},
                {"dontneed", os::Advice::kDontNeed}};
            for (const auto& [text, value] : kNames) {
              if (advice == text) return self.advise(self.tensor(name), value);
            }
            throw InvalidArgument("advice '" + advice +
                                  "' is unknown; known are normal, sequential, willneed, dontneed");
          },
          py::arg("name"), py::arg("advice"), "Tells the system how a tensor's pages will be used.")
      .def("drop_from_cache", &gguf::File::drop_from_cache, py::arg("drop"),
           "Whether pages that were repacked also leave the system's file cache.")
      .def(
          "check_model", [](const gguf::File& self) { gguf::check_model(self); },
          "The second pass: counts, widths and the vocabulary agree. Raises: FormatError.")
      .def(
          "find_int",
          [](const gguf::File& self, const std::string& key, int64_t least, int64_t most) {
            return gguf::find_int(self, key, least, most);
          },
          py::arg("key"), py::arg("least"), py::arg("most"))
      .def(
          "find_float",
          [](const gguf::File& self, const std::string& key, double least, double most) {
            return gguf::find_float(self, key, least, most);
          },
          py::arg("key"), py::arg("least"), py::arg("most"))
      .def("find_string", [](const gguf::File& self, const std::string& key) -> py::object {
        const auto text = gguf::find_string(self, key);
        return text ? py::object(to_str(*text)) : py::none();
      });
}

void register_writer(py::module_& module) {
  py::class_<gguf::Writer>(
      module, "GgufWriter",
      "Writes a GGUF file: add keys, add_tensor every shape, write their bytes in order, finish.")
      .def(py::init([](const std::string& path, uint64_t alignment, bool keep) {
             return std::make_unique<gguf::Writer>(
                 path, alignment, keep ? os::Unfinished::kKeep : os::Unfinished::kRemove);
           }),
           py::arg("path"), py::arg("alignment") = gguf::kDefaultAlignment,
           py::arg("keep") = false,
           "keep: an unfinished file stays as PATH.part, for `resume`.")
      .def(
          "add",
          [](gguf::Writer& self, const std::string& key, const std::string& type,
             const py::object& object) {
            std::string bytes;
            const Value value = encode(type, object, bytes);
            self.add(key, value);
          },
          py::arg("key"), py::arg("type"), py::arg("value"))
      .def(
          "copy_key",
          [](gguf::Writer& self, const gguf::File& from, const std::string& key) {
            self.add(key, value_of(from, key));
          },
          py::arg("file"), py::arg("key"), "The key with its exact type and bytes.")
      .def(
          "add_tensor",
          [](gguf::Writer& self, const std::string& name, const std::string& type,
             std::vector<uint64_t> shape) {
            std::reverse(shape.begin(), shape.end());
            self.add_tensor(name, gguf::tensor_type_id(type), shape);
          },
          py::arg("name"), py::arg("type"), py::arg("shape"), "shape: numpy order.")
      .def(
          "write",
          [](gguf::Writer& self, const py::buffer& data) { self.write(bytes_of(data, "write")); },
          py::arg("data"), "The next bytes of tensor data, in pieces of any size.")
      .def("resume", &gguf::Writer::resume, py::arg("tensors"),
           "Goes on behind so many tensors of an unfinished file with the same header: True; else "
           "begins anew: False.")
      .def("sync", &gguf::Writer::sync, py::call_guard<py::gil_scoped_release>())
      .def("finish", &gguf::Writer::finish, py::call_guard<py::gil_scoped_release>());
}

}  // namespace

static void register_map(py::module_& module) {
  py::class_<os::FileMap, std::shared_ptr<os::FileMap>>(module, "FileMap",
                                                        "A file mapped read-only.")
      .def(py::init<const std::string&>(), py::arg("path"))
      .def_property_readonly("size", [](const os::FileMap& map) { return map.bytes().size(); })
      .def("drop_from_cache", &os::FileMap::drop_from_cache, py::arg("drop"))
      .def(
          "bytes",
          [](const std::shared_ptr<os::FileMap>& map, uint64_t offset, uint64_t count) {
            const auto all = map->bytes();
            KT_CHECK(offset <= all.size() && count <= all.size() - offset, map->path(), ": bytes ",
                     offset, " + ", count, " of ", all.size());
            py::array_t<uint8_t> view({static_cast<py::ssize_t>(count)}, {1}, all.data() + offset,
                                      py::cast(map));
            view.attr("flags").attr("writeable") = false;
            return view;
          },
          py::arg("offset"), py::arg("count"), "A read-only view that keeps the map alive.");
}

void register_gguf(py::module_& module) {
  register_map(module);
  register_file(module);
  register_writer(module);
}

}  // namespace kt::bind
