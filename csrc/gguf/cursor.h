// A position in a file's bytes that cannot leave them, and the words in which a file is refused.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"

namespace kt::gguf {

inline constexpr char kDownloadAgain[] = "; the file is damaged or incomplete, download it again";

/// Text from a file made fit for an error message: in quotes, control and non-ASCII bytes as \xNN,
/// at most 80 characters of it.
std::string quoted(std::string_view text);

/// True for well-formed UTF-8 (no surrogates, no overlong forms, at most U+10FFFF).
bool is_utf8(std::string_view text);

/// Reads little-endian values one after another; throws FormatError naming file, what and place.
class Cursor {
 public:
  Cursor(std::span<const uint8_t> bytes, std::string_view file) : bytes_(bytes), file_(file) {}

  std::string_view file() const { return file_; }
  uint64_t position() const { return position_; }
  uint64_t remaining() const { return bytes_.size() - position_; }

  template <class T>
  T read(const char* what) {
    T value;
    memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }

  std::span<const uint8_t> take(uint64_t count, const char* what) {
    if (count > remaining()) short_of(count, what);
    const auto part = bytes_.subspan(position_, count);
    position_ += count;
    return part;
  }

  std::string_view read_string(uint64_t max_bytes, const char* what) {
    const uint64_t start = position_;
    const uint64_t length = read<uint64_t>(what);
    if (length > remaining()) short_of(length, what);
    if (length > max_bytes) {
      refuse(start, what, " is ", length, " bytes long, more than the allowed ", max_bytes,
             kDownloadAgain);
    }
    const auto part = take(length, what);
    return {reinterpret_cast<const char*>(part.data()), part.size()};
  }

  /// "file: at byte 24: ..."
  template <class... Parts>
  [[noreturn]] void refuse(uint64_t place, const Parts&... parts) const {
    throw FormatError(concat(file_, ": at byte ", place, ": ", parts...));
  }

 private:
  [[noreturn]] void short_of(uint64_t count, const char* what) const {
    refuse(position_, what, " needs ", count, " bytes, only ", remaining(), " are left",
           kDownloadAgain);
  }

  std::span<const uint8_t> bytes_;
  std::string_view file_;
  uint64_t position_ = 0;
};

}  // namespace kt::gguf
