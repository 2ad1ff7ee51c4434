// The GGUF container, version 2 and 3, little endian. Source: the public GGUF specification.
//
//   "GGUF"  u32 version  u64 tensor_count  u64 key_count
//   key_count    x { string key; u32 type; value }
//   tensor_count x { string name; u32 num_dims; u64 ne[num_dims]; u32 type; u64 offset }
//   padding to `alignment`, then the data section; offsets count from its start
//
//   string = u64 length, that many bytes.   array = u32 element type, u64 count, elements.
//   ne[0] is the contiguous axis: numpy's shape is ne reversed.
//
// A file is hostile until proven otherwise, so everything that can be counted has a limit here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace kt::gguf {

enum class ValueType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};
inline constexpr uint32_t kNumValueTypes = 13;

inline constexpr uint32_t kVersion = 3;  // what the writer writes; the reader takes 2 and 3
inline constexpr int kMaxDims = 4;
inline constexpr uint64_t kDefaultAlignment = 32;
inline constexpr uint64_t kMinAlignment = 8;           // the specification's own unit
inline constexpr uint64_t kMaxAlignment = 1ull << 30;  // the largest page there is
// The largest models known have some 60 keys and 50,000 tensors (every expert on its own). The
// limits also bound what a small hostile file can make us remember: some 100 bytes an entry.
inline constexpr uint64_t kMaxKeys = 1u << 16;
inline constexpr uint64_t kMaxTensors = 1u << 16;
inline constexpr uint64_t kMaxKeyBytes = 65535;  // the specification's limit
inline constexpr uint64_t kMaxNameBytes = 255;  // ours; the specification says 64, peers write more
inline constexpr uint64_t kMaxStrings = 1u
                                        << 21;  // in one array; four times the longest merge list

/// Bytes of one value of a fixed-size type; 0 for strings and arrays.
constexpr size_t value_bytes(ValueType type) {
  switch (type) {
    case ValueType::kU8:
    case ValueType::kI8:
    case ValueType::kBool:
      return 1;
    case ValueType::kU16:
    case ValueType::kI16:
      return 2;
    case ValueType::kU32:
    case ValueType::kI32:
    case ValueType::kF32:
      return 4;
    case ValueType::kU64:
    case ValueType::kI64:
    case ValueType::kF64:
      return 8;
    case ValueType::kString:
    case ValueType::kArray:
      break;
  }
  return 0;
}

constexpr const char* value_type_name(ValueType type) {
  constexpr const char* kNames[kNumValueTypes] = {"u8",  "i8",  "u16",  "i16",    "u32",
                                                  "i32", "f32", "bool", "string", "array",
                                                  "u64", "i64", "f64"};
  return static_cast<uint32_t>(type) < kNumValueTypes ? kNames[static_cast<uint32_t>(type)] : "?";
}

/// A tensor's storage type: a weight format of quant/formats.h, or plain numbers that are no
/// weights.
struct TensorType {
  const char* name;
  int id;
  int values_per_block;
  size_t bytes_per_block;
};

/// nullptr for an id this build cannot read.
const TensorType* find_tensor_type(uint32_t id);

/// Id of a type by name ("q4_1", "i32"); throws Unsupported.
uint32_t tensor_type_id(std::string_view name);

}  // namespace kt::gguf
