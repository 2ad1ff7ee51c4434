// Writes a GGUF version 3 file that appears under its name only when it is complete.
//
//   Writer out("model.gguf");
//   out.add("general.architecture", text("llama"));      keys first,
//   out.add_tensor("token_embd.weight", 3, {576, 49152});  then every tensor's shape,
//   out.write(bytes); ...                                   then their data in the same order,
//   out.finish();                                           in pieces of any size.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "base/os_file.h"
#include "gguf/format.h"
#include "gguf/value.h"

namespace kt::gguf {

class Writer {
 public:
  /// Raises: InvalidArgument for an alignment the reader would refuse; SystemError.
  explicit Writer(const std::string& path, uint64_t alignment = kDefaultAlignment,
                  os::Unfinished unfinished = os::Unfinished::kRemove);

  /// Copies the value, also straight from a reader. Raises: InvalidArgument for a key that is no
  /// key or there already, or for a value whose bytes do not fit its type and count.
  void add(std::string_view key, const Value& value);

  /// ne[0] is the contiguous axis. Raises: InvalidArgument (name, shape), Unsupported (type id).
  void add_tensor(std::string_view name, uint32_t type, std::span<const uint64_t> ne);

  /// The next bytes of tensor data; gaps for alignment are filled in between tensors.
  void write(std::span<const uint8_t> bytes);

  /// With kKeep, after all keys and tensors were added: goes on behind the first `tensors` tensors
  /// of an unfinished file with the very same header, or else (false) begins anew.
  bool resume(size_t tensors);

  /// Bytes written so far survive a power cut from here on. Raises: SystemError.
  void sync() { file_.sync(); }

  /// Raises: InvalidArgument unless exactly every tensor's bytes were written; SystemError.
  void finish();

  const std::string& path() const { return file_.path(); }

 private:
  std::string header() const;  // all before the data, padded
  void start_data();

  os::AtomicFile file_;
  uint64_t alignment_;
  std::string keys_, infos_;  // encoded entries
  uint64_t num_keys_ = 0;
  std::unordered_set<std::string> names_;  // of keys, then of tensors with a leading zero byte
  std::vector<uint64_t> tensor_bytes_;
  uint64_t data_bytes_ = 0;  // end of the last tensor added, relative to the data section
  bool in_data_ = false;
  size_t current_ = 0;    // tensor being written
  uint64_t written_ = 0;  // bytes of it
};

}  // namespace kt::gguf
