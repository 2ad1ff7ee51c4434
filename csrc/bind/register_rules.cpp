// Rule files: the one YAML parser of the project, as Python sees it.
#include <pybind11/stl.h>

#include <memory>

#include "bind/register.h"
#include "rules/yaml.h"

namespace py = pybind11;

namespace kt::bind {
namespace {

using rules::Node;

py::object scalar_value(const rules::Scalar& scalar) {
  return std::visit(
      [](const auto& value) -> py::object {
        if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::monostate>)
          return py::none();
        else
          return py::cast(value);
      },
      scalar);
}

/// Plain Python: None, bool, int, float, str, list, dict.
py::object plain(const Node& node) {
  switch (node.kind) {
    case Node::Kind::kSequence: {
      py::list out;
      for (const Node& item : node.items) out.append(plain(item));
      return out;
    }
    case Node::Kind::kMap: {
      py::dict out;
      for (const auto& [key, value] : node.entries) out[plain(key)] = plain(value);
      return out;
    }
    default:
      return scalar_value(node.scalar);
  }
}

const char* kind_name(const Node& node) {
  switch (node.kind) {
    case Node::Kind::kSequence:
      return "sequence";
    case Node::Kind::kMap:
      return "map";
    default:
      return "scalar";
  }
}

}  // namespace

void register_rules(py::module_& module) {
  py::class_<Node, std::shared_ptr<Node>>(module, "YamlNode",
                                          "A value of a YAML file that knows where it stood.")
      .def_property_readonly("kind", &kind_name, "'scalar', 'sequence' or 'map'.")
      .def_property_readonly(
          "line", [](const Node& node) { return node.place.line; }, "Counts from one.")
      .def_property_readonly(
          "column", [](const Node& node) { return node.place.column; },
          "Counts characters from one.")
      .def_property_readonly("value", &plain, "The whole value as plain Python objects.")
      .def(
          "items",
          [](const std::shared_ptr<Node>& node) {
            py::list out;
            for (auto& item : node->items) out.append(std::shared_ptr<Node>(node, &item));
            return out;
          },
          "The nodes of a sequence.")
      .def(
          "entries",
          [](const std::shared_ptr<Node>& node) {
            py::list out;
            for (auto& [key, value] : node->entries)
              out.append(py::make_tuple(std::shared_ptr<Node>(node, &key),
                                        std::shared_ptr<Node>(node, &value)));
            return out;
          },
          "The (key node, value node) pairs of a map, in file order.");

  module.def(
      "parse_yaml",
      [](const std::string& path) { return std::make_shared<Node>(rules::parse_yaml_file(path)); },
      py::arg("path"),
      "Reads one YAML file with YAML 1.1 typing; raises FormatError 'path:line:column: what'.");
  module.def(
      "parse_yaml_text",
      [](const py::bytes& text, const std::string& name) {
        return std::make_shared<Node>(
            rules::parse_yaml_text(static_cast<std::string_view>(text), name));
      },
      py::arg("text"), py::arg("name"), "The same for UTF-8 bytes in memory.");
}

}  // namespace kt::bind
