// One GGUF file's header, parsed from memory: every count, length and offset is proven to lie
// inside the file before anything is allocated or followed. Nothing is copied but names.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gguf/format.h"
#include "gguf/value.h"

namespace kt::gguf {

struct Key {
  std::string_view name;
  Value value;
};

struct Tensor {
  std::string_view name;
  const TensorType* type;
  int num_dims;
  uint64_t ne[kMaxDims];  // ne[0] contiguous; 1 beyond num_dims
  uint64_t offset;        // bytes from the start of the file
  uint64_t bytes;
};

/// Views into `bytes`, which must outlive the reader.
class Reader {
 public:
  /// bytes: the whole file.  file: its name, for messages.
  /// Raises: FormatError (not a GGUF file, damaged, hostile), Unsupported (version 1, big endian,
  /// unknown tensor type, nested arrays).
  Reader(std::span<const uint8_t> bytes, std::string file);

  const std::string& file() const { return file_; }
  uint32_t version() const { return version_; }
  uint64_t alignment() const { return alignment_; }
  std::span<const uint8_t> bytes() const { return bytes_; }
  const std::vector<Key>& keys() const { return keys_; }           // in the file's order
  const std::vector<Tensor>& tensors() const { return tensors_; }  // in the file's order

  const Value* find(std::string_view key) const;           // nullptr if absent
  const Tensor* find_tensor(std::string_view name) const;  // nullptr if absent

  std::span<const uint8_t> data(const Tensor& tensor) const {
    return bytes_.subspan(tensor.offset, tensor.bytes);
  }

 private:
  std::span<const uint8_t> bytes_;
  std::string file_;
  uint32_t version_ = 0;
  uint64_t alignment_ = kDefaultAlignment;
  std::vector<Key> keys_;
  std::vector<Tensor> tensors_;
  std::vector<uint32_t> key_order_, tensor_order_;  // indices sorted by name
};

}  // namespace kt::gguf
