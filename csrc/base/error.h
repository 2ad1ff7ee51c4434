// Errors of the core, and checks that print the values they failed on.
//
// The core never prints and never aborts: it throws one of these, and bind/ translates them once:
//   InvalidArgument -> ValueError, FormatError -> FormatError(ValueError),
//   Unsupported -> NotImplementedError, SystemError -> OSError.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace kt {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A caller's value is out of range or inconsistent.
class InvalidArgument : public Error {
 public:
  using Error::Error;
};

/// A file's content is damaged or hostile.
class FormatError : public InvalidArgument {
 public:
  using InvalidArgument::InvalidArgument;
};

/// Valid, but something this build or machine cannot do.
class Unsupported : public Error {
 public:
  using Error::Error;
};

/// The operating system refused; the message carries the call and errno's text.
class SystemError : public Error {
 public:
  using Error::Error;
};

/// concat("k=", 3, " must divide ", 256) -> "k=3 must divide 256"
template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace kt

/// KT_CHECK(k % 32 == 0, "k=", k, " must be a multiple of 32"): throws InvalidArgument with the values.
#define KT_CHECK(condition, ...) \
  do {                           \
    if (!(condition)) throw ::kt::InvalidArgument(::kt::concat(__VA_ARGS__)); \
  } while (0)

/// The same for bytes that came from a file.
#define KT_CHECK_FORMAT(condition, ...) \
  do {                                  \
    if (!(condition)) throw ::kt::FormatError(::kt::concat(__VA_ARGS__)); \
  } while (0)
