// A metadata value: a typed view of bytes in the file, copied only when somebody asks for it.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "gguf/format.h"

namespace kt::gguf {

struct Value {
  ValueType type = ValueType::kU8;     // kArray for arrays
  ValueType element = ValueType::kU8;  // type of an array's elements; equals `type` otherwise
  uint64_t count = 1;                  // elements
  // Little endian, unaligned: numbers one after another; of a string its bytes without the length;
  // of an array of strings every string with its u64 length before it.
  std::span<const uint8_t> bytes;

  bool is_array() const { return type == ValueType::kArray; }
  bool is_integer() const {
    return type <= ValueType::kI32 || type == ValueType::kU64 || type == ValueType::kI64;
  }
  bool operator==(const Value& other) const {
    return type == other.type && element == other.element && count == other.count &&
           bytes.size() == other.bytes.size() &&
           (bytes.empty() || memcmp(bytes.data(), other.bytes.data(), bytes.size()) == 0);
  }
};

/// Element i of a view of fixed-size values, widened; T = uint64_t, int64_t or double as fits.
template <class T>
T load_number(ValueType type, const uint8_t* at) {
  const auto load = [at]<class Stored>(Stored value) {
    memcpy(&value, at, sizeof value);
    return static_cast<T>(value);
  };
  switch (type) {
    case ValueType::kU8:
    case ValueType::kBool:
      return load(uint8_t{});
    case ValueType::kI8:
      return load(int8_t{});
    case ValueType::kU16:
      return load(uint16_t{});
    case ValueType::kI16:
      return load(int16_t{});
    case ValueType::kU32:
      return load(uint32_t{});
    case ValueType::kI32:
      return load(int32_t{});
    case ValueType::kU64:
      return load(uint64_t{});
    case ValueType::kI64:
      return load(int64_t{});
    case ValueType::kF32:
      return load(float{});
    case ValueType::kF64:
      return load(double{});
    case ValueType::kString:
    case ValueType::kArray:
      break;
  }
  return T{};
}

/// Calls visit(std::string_view) for each string of an array of strings (the reader has proven that
/// lengths and bytes fit), or once for a string.
template <class Visit>
void for_each_string(const Value& value, Visit&& visit) {
  const auto* at = reinterpret_cast<const char*>(value.bytes.data());
  if (!value.is_array()) return visit(std::string_view(at, value.bytes.size()));
  for (uint64_t i = 0; i < value.count; ++i) {
    uint64_t length;
    memcpy(&length, at, sizeof length);
    visit(std::string_view(at + sizeof length, length));
    at += sizeof length + length;
  }
}

}  // namespace kt::gguf
