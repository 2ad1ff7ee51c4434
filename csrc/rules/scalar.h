// What a plain (unquoted) YAML scalar means: YAML 1.1 as PyYAML reads it.
//
//   no, On, TRUE            booleans   1:30        ninety, base sixty
//   012, 0x1F, 0b11, 1_000  integers   1e3, 08     strings: floats need a dot, octals digits 0-7
//   1.0e+3, .5, -.inf       floats     ~, nothing  null, also null, Null, NULL; None is a string
//
// Upstream's rule files are read by PyYAML, so `recursive: False` and `30: "cuda:1"` depend on it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>

namespace kt::rules {

/// std::monostate is null.
using Scalar = std::variant<std::monostate, bool, int64_t, double, std::string>;

/// The typed value of a plain scalar.
/// Raises FormatError without a place (the parser adds it): integers beyond 64 bits, floats beyond
/// a double, dates, and the merge key `<<` and value key `=`, which rules have no use for.
Scalar resolve_plain(std::string_view text);

}  // namespace kt::rules
