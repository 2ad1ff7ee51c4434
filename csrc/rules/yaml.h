// Rule files as plain typed values that remember where they stood.
//
// yaml-cpp splits the text; everything that could surprise is refused with its place: duplicate
// keys, anchors, aliases, merge keys, tags, several documents, bad UTF-8, more than 256 KiB, more
// than 16 levels. Nothing else in the project parses YAML.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rules/scalar.h"

namespace kt::rules {

inline constexpr size_t kMaxYamlBytes = 256 * 1024;
inline constexpr size_t kMaxYamlDepth = 16;

/// Both count from one; a column counts characters (code points), as editors do.
struct Place {
  size_t line = 1;
  size_t column = 1;

  bool operator==(const Place&) const = default;
};

struct Node {
  enum class Kind { kScalar, kSequence, kMap };

  Kind kind = Kind::kScalar;
  Place place;
  Scalar scalar;            // kScalar
  std::vector<Node> items;  // kSequence
  std::vector<std::pair<Node, Node>>
      entries;  // kMap, in file order; keys: string, integer, bool, null
};

/// Parses one document; `name` stands for the file in messages.
/// Raises FormatError "name:line:column: what, and what to do".
Node parse_yaml_text(std::string_view text, const std::string& name);

/// The same for a file. Raises SystemError when it cannot be read.
Node parse_yaml_file(const std::string& path);

}  // namespace kt::rules
