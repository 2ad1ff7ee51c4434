#include "gguf/writer.h"

#include <algorithm>

#include "base/checked.h"
#include "gguf/cursor.h"

namespace kt::gguf {
namespace {

template <class T>
void append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void append_string(std::string& out, std::string_view text) {
  append<uint64_t>(out, text.size());
  out += text;
}

void check_name(const std::string& file, const char* what, std::string_view name, uint64_t most) {
  const bool printable = std::all_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) >= 0x20 && c != 0x7F;
  });
  KT_CHECK(!name.empty() && name.size() <= most && printable && is_utf8(name), file, ": ", what,
           " ", quoted(name), " must be 1 to ", most, " bytes of printable UTF-8");
}

// A value's bytes must be exactly what the reader would delimit.
void check_value(const std::string& file, std::string_view key, const Value& value) {
  const ValueType element = value.is_array() ? value.element : value.type;
  KT_CHECK(static_cast<uint32_t>(element) < kNumValueTypes && element != ValueType::kArray, file,
           ": key ", quoted(key), ": no such value type");
  KT_CHECK(value.is_array() || value.count == 1, file, ": key ", quoted(key), ": ", value.count,
           " values, and not an array");
  if (const size_t each = value_bytes(element)) {
    KT_CHECK(checked_mul(value.count, each, "array size") == value.bytes.size(), file, ": key ",
             quoted(key), ": ", value.bytes.size(), " bytes for ", value.count, " values of type ",
             value_type_name(element));
  } else if (value.is_array()) {
    KT_CHECK(value.count <= kMaxStrings, file, ": key ", quoted(key), ": ", value.count,
             " strings, at most ", kMaxStrings, " are allowed");
    Cursor cursor(value.bytes, file);
    for (uint64_t i = 0; i < value.count; ++i) cursor.read_string(UINT64_MAX, "string");
    KT_CHECK(cursor.remaining() == 0, file, ": key ", quoted(key), ": ", cursor.remaining(),
             " bytes after the last string");
  }
}

}  // namespace

Writer::Writer(const std::string& path, uint64_t alignment, os::Unfinished unfinished)
    : file_(path, unfinished), alignment_(alignment) {
  KT_CHECK(alignment >= kMinAlignment && alignment <= kMaxAlignment &&
               (alignment & (alignment - 1)) == 0,
           path, ": alignment ", alignment, " must be a power of two from ", kMinAlignment, " to ",
           kMaxAlignment);
  if (alignment == kDefaultAlignment) return;
  const auto value = static_cast<uint32_t>(alignment);
  add("general.alignment", {.type = ValueType::kU32,
                            .element = ValueType::kU32,
                            .count = 1,
                            .bytes = {reinterpret_cast<const uint8_t*>(&value), sizeof value}});
}

void Writer::add(std::string_view key, const Value& value) {
  KT_CHECK(!in_data_, path(), ": key ", quoted(key), " added after tensor data");
  KT_CHECK(num_keys_ < kMaxKeys, path(), ": more than ", kMaxKeys, " keys");
  check_name(path(), "key", key, kMaxKeyBytes);
  check_value(path(), key, value);
  if (key == "general.alignment") {
    KT_CHECK(value.type == ValueType::kU32 &&
                 load_number<uint64_t>(value.type, value.bytes.data()) == alignment_,
             path(), ": key 'general.alignment' must be the u32 ", alignment_,
             " the writer was made with");
  }
  KT_CHECK(names_.emplace(key).second, path(), ": key ", quoted(key), " added twice");
  append_string(keys_, key);
  append(keys_, value.type);
  if (value.is_array()) {
    append(keys_, value.element);
    append(keys_, value.count);
  } else if (value.type == ValueType::kString) {
    append<uint64_t>(keys_, value.bytes.size());
  }
  keys_.append(reinterpret_cast<const char*>(value.bytes.data()), value.bytes.size());
  ++num_keys_;
}

void Writer::add_tensor(std::string_view name, uint32_t type, std::span<const uint64_t> ne) {
  KT_CHECK(!in_data_, path(), ": tensor ", quoted(name), " added after tensor data");
  KT_CHECK(tensor_bytes_.size() < kMaxTensors, path(), ": more than ", kMaxTensors, " tensors");
  check_name(path(), "tensor name", name, kMaxNameBytes);
  KT_CHECK(!ne.empty() && ne.size() <= kMaxDims, path(), ": tensor ", quoted(name), " has ",
           ne.size(), " dimensions, must be 1 to ", kMaxDims);
  const TensorType* info = find_tensor_type(type);
  if (info == nullptr) {
    throw Unsupported(concat(path(), ": tensor ", quoted(name), ": type id ", type, " is unknown"));
  }
  const auto per_block = static_cast<uint64_t>(info->values_per_block);
  KT_CHECK(ne[0] % per_block == 0, path(), ": tensor ", quoted(name), " has rows of ", ne[0],
           " values, type ", info->name, " needs a multiple of ", per_block);
  uint64_t values = 1;
  for (const uint64_t n : ne) {
    KT_CHECK(n > 0, path(), ": tensor ", quoted(name), " has a dimension of 0");
    values = checked_mul(values, n, "tensor size");
  }
  KT_CHECK(values <= INT64_MAX, path(), ": tensor ", quoted(name), " has ", values, " values");
  const uint64_t bytes = checked_mul(values / per_block, info->bytes_per_block, "tensor size");
  const uint64_t offset = checked_round_up(data_bytes_, alignment_, "tensor offset");
  const uint64_t end = checked_add(offset, bytes, "tensor end");
  KT_CHECK(names_.insert(std::string(1, '\0').append(name)).second, path(), ": tensor ",
           quoted(name), " added twice");

  append_string(infos_, name);
  append<uint32_t>(infos_, static_cast<uint32_t>(ne.size()));
  for (const uint64_t n : ne) append(infos_, n);
  append(infos_, type);
  append(infos_, offset);
  data_bytes_ = end;
  tensor_bytes_.push_back(bytes);
}

std::string Writer::header() const {
  std::string out = "GGUF";
  append(out, kVersion);
  append<uint64_t>(out, tensor_bytes_.size());
  append(out, num_keys_);
  out += keys_;
  out += infos_;
  out.resize(checked_round_up(out.size(), alignment_, "header"), '\0');
  return out;
}

void Writer::start_data() {
  const std::string bytes = header();
  if (file_.size() > 0) file_.truncate(0);  // an unfinished file nobody asked to go on with
  file_.write({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  in_data_ = true;
}

bool Writer::resume(size_t tensors) {
  KT_CHECK(!in_data_, path(), ": resume after tensor data");
  const std::string bytes = header();
  uint64_t end = bytes.size();
  for (size_t i = 0; i < std::min(tensors, tensor_bytes_.size()); ++i) {
    end = checked_add(end, checked_round_up(tensor_bytes_[i], alignment_, "tensor"), "tensors");
  }
  if (tensors > tensor_bytes_.size() || file_.size() < end ||
      !file_.starts_with({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()})) {
    start_data();
    return false;
  }
  file_.truncate(end);
  in_data_ = true;
  current_ = tensors;
  return true;
}

void Writer::write(std::span<const uint8_t> bytes) {
  if (!in_data_) start_data();
  while (!bytes.empty()) {
    KT_CHECK(current_ < tensor_bytes_.size(), path(), ": ", bytes.size(),
             " bytes more than the tensors have");
    const uint64_t size = tensor_bytes_[current_];
    const auto part = bytes.first(std::min<uint64_t>(bytes.size(), size - written_));
    file_.write(part);
    written_ += part.size();
    bytes = bytes.subspan(part.size());
    if (written_ < size) continue;
    // Padding also behind the last tensor, as other writers do and some readers expect.
    const std::string padding(checked_round_up(size, alignment_, "tensor") - size, '\0');
    file_.write({reinterpret_cast<const uint8_t*>(padding.data()), padding.size()});
    ++current_;
    written_ = 0;
  }
}

void Writer::finish() {
  if (!in_data_) start_data();
  KT_CHECK(current_ == tensor_bytes_.size(), path(), ": finish after ", current_, " of ",
           tensor_bytes_.size(), " tensors and ", written_, " bytes of the next");
  file_.commit();
}

}  // namespace kt::gguf
