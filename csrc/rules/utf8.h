// Strict decoding of UTF-8, one character at a time.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace kt::rules {

inline bool is_utf8_continuation(char c) { return (static_cast<uint8_t>(c) & 0xC0) == 0x80; }

struct DecodedChar {
  uint32_t value = 0;
  size_t length = 0;  // bytes; 0: not UTF-8
};

/// The first character of `text`; refuses overlong forms, surrogates and values past U+10FFFF.
inline DecodedChar decode_utf8(std::string_view text) {
  const uint8_t lead = text.empty() ? 0xFF : static_cast<uint8_t>(text[0]);
  if (lead < 0x80) return {lead, 1};
  const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < length) return {};
  uint32_t value = lead & (0x7F >> length);
  for (size_t i = 1; i < length; ++i) {
    if (!is_utf8_continuation(text[i])) return {};
    value = value << 6 | (static_cast<uint8_t>(text[i]) & 0x3F);
  }
  constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  if (value < kSmallest[length] || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000))
    return {};
  return {value, length};
}

inline bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = decode_utf8(text).length;
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

/// The text with every byte that is no UTF-8 or a control character replaced by '?', for messages.
inline std::string printable(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const DecodedChar c = decode_utf8(text);
    const bool shown = c.length > 0 && c.value >= 0x20 && c.value != 0x7f;
    out += shown ? text.substr(0, c.length) : "?";
    text.remove_prefix(c.length > 0 ? c.length : 1);
  }
  return out;
}

/// At least four upper-case hexadecimal digits.
inline std::string hex4(uint32_t value) {
  std::string out;
  for (int shift = 28; shift >= 0; shift -= 4)
    if (shift < 16 || value >> shift) out += "0123456789ABCDEF"[value >> shift & 15];
  return out;
}

}  // namespace kt::rules
