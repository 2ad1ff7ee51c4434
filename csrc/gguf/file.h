// A model on disk: one mapped GGUF file, or the files of a split one, as a single set of keys and
// tensors.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/os_file.h"
#include "gguf/reader.h"

namespace kt::gguf {

/// A tensor and the part of the model it lies in.
struct TensorRef {
  const Tensor* tensor;
  size_t part;
};

class File {
 public:
  /// paths: one file, or every file of a split model in order.
  /// Raises: what Reader raises; SystemError; FormatError when the files are not the parts 1..n of
  /// one model (missing, twice, out of order, from another model, a tensor or a tensor count off).
  explicit File(const std::vector<std::string>& paths);

  /// The same over bytes in memory, which must outlive the file; advice then does nothing.
  static File over(std::span<const std::span<const uint8_t>> parts);

  size_t num_parts() const { return readers_.size(); }
  const Reader& part(size_t i) const { return readers_[i]; }
  /// The file messages about the whole model name: the first part.
  const std::string& path() const { return readers_.front().file(); }

  const std::vector<Key>& keys() const { return keys_; }              // of all parts, each once
  const std::vector<TensorRef>& tensors() const { return tensors_; }  // part by part

  const Value* find(std::string_view key) const;  // nullptr if absent
  std::optional<TensorRef> find_tensor(std::string_view name) const;
  /// Raises: InvalidArgument naming the tensor that is missing.
  TensorRef tensor(std::string_view name) const;

  std::span<const uint8_t> data(const TensorRef& ref) const {
    return readers_[ref.part].data(*ref.tensor);
  }
  void drop_from_cache(bool drop) {
    for (os::FileMap& map : maps_) map.drop_from_cache(drop);
  }
  void advise(const TensorRef& ref, os::Advice advice) const {
    if (!maps_.empty()) maps_[ref.part].advise(ref.tensor->offset, ref.tensor->bytes, advice);
  }

 private:
  File() = default;
  void check_split() const;
  void merge();

  std::deque<os::FileMap> maps_;  // deque: maps never move while readers look at them
  std::deque<Reader> readers_;
  std::vector<Key> keys_;
  std::vector<TensorRef> tensors_;
};

// Typed access to metadata. Each returns nullopt for an absent key and raises FormatError naming
// file, key and value for a wrong type or a value out of range.
std::optional<int64_t> find_int(const File& file, std::string_view key, int64_t least,
                                int64_t most);
std::optional<double> find_float(const File& file, std::string_view key, double least, double most);
std::optional<std::string_view> find_string(const File& file, std::string_view key);

}  // namespace kt::gguf
