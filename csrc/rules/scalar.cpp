#include "rules/scalar.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <optional>
#include <regex>

#include "base/error.h"

namespace kt::rules {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_octal(char c) { return c >= '0' && c <= '7'; }
bool is_binary(char c) { return c == '0' || c == '1'; }
bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

/// Every character is a digit by `accepts` or an underscore, and there is at least one character.
template <class Accepts>
bool all_digits(std::string_view text, Accepts accepts) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [&](char c) { return c == '_' || accepts(c); });
}

/// A digit, then digits and underscores.
bool is_decimal(std::string_view text) {
  return !text.empty() && is_digit(text[0]) && all_digits(text, is_digit);
}

std::string without_underscores(std::string_view text) {
  std::string out(text);
  std::erase(out, '_');
  return out;
}

/// Takes an optional sign off the front; true if it was a minus.
bool take_sign(std::string_view& text) {
  const bool negative = !text.empty() && text[0] == '-';
  if (negative || (!text.empty() && text[0] == '+')) text.remove_prefix(1);
  return negative;
}

std::string_view take_until(std::string_view& text, char separator) {
  const size_t end = text.find(separator);
  const std::string_view head = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  return head;
}

std::optional<bool> as_bool(std::string_view text) {
  for (const char* word : {"yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"})
    if (text == word) return true;
  for (const char* word : {"no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"})
    if (text == word) return false;
  return std::nullopt;
}

bool is_null(std::string_view text) {
  return text.empty() || text == "~" || text == "null" || text == "Null" || text == "NULL";
}

/// True for `:` groups as base-sixty numbers have them: after the head, 0-59 each, one or two
/// digits.
bool are_sixties(std::string_view groups) {
  while (true) {
    const size_t end = groups.find(':');
    const std::string_view group = groups.substr(0, end);
    const bool one = group.size() == 1 && is_digit(group[0]);
    const bool two = group.size() == 2 && group[0] >= '0' && group[0] <= '5' && is_digit(group[1]);
    if (!one && !two) return false;
    if (end == std::string_view::npos) return true;
    groups.remove_prefix(end + 1);
  }
}

double parse_double(std::string_view text, std::string_view whole) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end)
    throw FormatError(concat("the number ", whole, " does not fit a double"));
  return value;
}

/// Seconds-like base-sixty float; `text` has no sign and no underscores.
/// The order of the sums is PyYAML's, so that the last bit is too.
double parse_sixty_float(std::string_view text, std::string_view whole) {
  double value = 0, base = 1;
  for (size_t end = text.size();;) {
    const size_t colon = text.substr(0, end).rfind(':');
    const size_t begin = colon == std::string_view::npos ? 0 : colon + 1;
    value += parse_double(text.substr(begin, end - begin), whole) * base;
    base *= 60;
    if (begin == 0) return value;
    end = colon;
  }
}

std::optional<double> as_float(std::string_view whole) {
  std::string_view text = whole;
  const bool negative = take_sign(text);
  const double sign = negative ? -1.0 : 1.0;
  if (text == ".inf" || text == ".Inf" || text == ".INF")
    return sign * std::numeric_limits<double>::infinity();
  if (whole == ".nan" || whole == ".NaN" || whole == ".NAN")
    return std::numeric_limits<double>::quiet_NaN();

  const size_t dot = text.find('.');
  if (dot == std::string_view::npos) return std::nullopt;
  const std::string_view head = text.substr(0, dot);
  std::string_view tail = text.substr(dot + 1);
  const size_t colon = head.find(':');
  if (colon != std::string_view::npos) {
    if (!is_decimal(head.substr(0, colon)) || !are_sixties(head.substr(colon + 1)) ||
        !(tail.empty() || all_digits(tail, is_digit)))
      return std::nullopt;
    return sign * parse_sixty_float(without_underscores(text), whole);
  }

  // An exponent counts only with its sign: 1.0e3 is a string, 1.0e+3 is a thousand.
  const size_t e = tail.find_first_of("eE");
  if (e != std::string_view::npos) {
    std::string_view exponent = tail.substr(e + 1);
    if (exponent.empty() || (exponent[0] != '+' && exponent[0] != '-')) return std::nullopt;
    exponent.remove_prefix(1);
    if (exponent.empty() || !std::all_of(exponent.begin(), exponent.end(), is_digit))
      return std::nullopt;
    tail = tail.substr(0, e);
  }
  if (head.empty()) {
    // A leading dot takes no sign: -.5 is a string.
    if (text.size() != whole.size() || !is_decimal(tail)) return std::nullopt;
  } else if (!is_decimal(head) || !(tail.empty() || all_digits(tail, is_digit))) {
    return std::nullopt;
  }
  return sign * parse_double(without_underscores(text), whole);
}

int64_t parse_digits(std::string_view text, int base, bool negative, std::string_view whole) {
  std::string digits = without_underscores(text);
  if (negative) digits.insert(digits.begin(), '-');
  int64_t value = 0;
  const char* end = digits.data() + digits.size();
  const auto [stop, error] = std::from_chars(digits.data(), end, value, base);
  if (error == std::errc::result_out_of_range)
    throw FormatError(concat("the integer ", whole, " does not fit 64 bits"));
  if (error != std::errc() || stop != end)
    throw FormatError(concat(whole, " has no digits; quote it if it is meant as text"));
  return value;
}

int64_t parse_sixty_int(std::string_view text, bool negative, std::string_view whole) {
  int64_t value = 0;
  bool overflow = false;
  while (!text.empty()) {
    const int64_t group = parse_digits(take_until(text, ':'), 10, negative, whole);
    overflow |= __builtin_mul_overflow(value, int64_t{60}, &value);
    overflow |= __builtin_add_overflow(value, group, &value);
  }
  if (overflow) throw FormatError(concat("the integer ", whole, " does not fit 64 bits"));
  return value;
}

std::optional<int64_t> as_int(std::string_view whole) {
  std::string_view text = whole;
  const bool negative = take_sign(text);
  if (text.starts_with("0b") && all_digits(text.substr(2), is_binary))
    return parse_digits(text.substr(2), 2, negative, whole);
  if (text.starts_with("0x") && all_digits(text.substr(2), is_hex))
    return parse_digits(text.substr(2), 16, negative, whole);
  if (text == "0") return 0;
  if (text.starts_with("0"))
    return all_digits(text.substr(1), is_octal)
               ? std::optional(parse_digits(text, 8, negative, whole))
               : std::nullopt;
  if (is_decimal(text)) return parse_digits(text, 10, negative, whole);
  const size_t colon = text.find(':');
  if (colon != std::string_view::npos && is_decimal(text.substr(0, colon)) &&
      are_sixties(text.substr(colon + 1)))
    return parse_sixty_int(text, negative, whole);
  return std::nullopt;
}

/// 2001-12-14, alone or with a time of day.
bool is_date(std::string_view text) {
  constexpr size_t kLongest = 64;  // std::regex recurses; a longer date is text
  if (text.size() > kLongest || text.empty() || !is_digit(text[0])) return false;
  static const std::regex date(
      R"(\d{4}-\d\d-\d\d|)"
      R"(\d{4}-\d\d?-\d\d?([Tt]|[ \t]+)\d\d?:\d\d:\d\d(\.\d*)?([ \t]*(Z|[-+]\d\d?(:\d\d)?))?)");
  return std::regex_match(text.begin(), text.end(), date);
}

}  // namespace

Scalar resolve_plain(std::string_view text) {
  if (is_null(text)) return std::monostate();
  if (const auto value = as_bool(text)) return *value;
  if (const auto value = as_float(text)) return *value;
  if (const auto value = as_int(text)) return *value;
  if (is_date(text))
    throw FormatError(concat("dates are not used here; quote ", text, " if it is meant as text"));
  if (text == "<<") throw FormatError("merge keys (<<) are not accepted; write the entries out");
  if (text == "=") throw FormatError("a bare = is not accepted; quote it if it is meant as text");
  return std::string(text);
}

}  // namespace kt::rules
