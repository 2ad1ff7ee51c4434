#include "gguf/sniff.h"

#include <algorithm>
#include <cctype>
#include <string_view>

#include "base/error.h"
#include "gguf/cursor.h"
#include "gguf/format.h"
#include "quant/refused.h"

namespace kt::gguf {
namespace {

struct Lookalike {
  std::string_view start;
  const char* advice;
};

// What people really have under the name of a model. HTML is looked for in lower case.
constexpr Lookalike kLookalikes[] = {
    {"version https://git-lfs",
     "is a Git LFS pointer, not the model; run `git lfs pull` in its folder"},
    {"<!doctype",
     "is a web page, not a model; download the file itself (the page's `resolve` link)"},
    {"<html", "is a web page, not a model; download the file itself (the page's `resolve` link)"},
    {"<?xml", "is an error page of a server, not a model; download it again"},
    {"{\"error\"", "is a server's error message, not a model; read it, then download again"},
    {"invalid username or password",
     "is a server's refusal, not a model; log in and download again"},
    {"entry not found", "is a server's refusal, not a model; check the address and download again"},
    {"ggml", "is in the GGML format that GGUF replaced in 2023; download a GGUF of the model"},
    {"lmgg", "is in the GGML format that GGUF replaced in 2023; download a GGUF of the model"},
    {"tjgg", "is in the GGJT format that GGUF replaced in 2023; download a GGUF of the model"},
    {"fmgg", "is in the GGMF format that GGUF replaced in 2023; download a GGUF of the model"},
    {"pk\x03\x04",
     "is a ZIP archive (a PyTorch checkpoint?); it may carry code and is not opened: "
     "download a GGUF of the model"},
    {"\x80\x02",
     "is a Python pickle; it may carry code and is not opened: download a GGUF of the model"},
    {"\x1f\x8b", "is gzip-compressed; unpack it first"},
    {"\x28\xb5\x2f\xfd", "is zstd-compressed; unpack it first"},
    {"\x89hdf", "is an HDF5 file; download a GGUF of the model"},
};

}  // namespace

void check_magic(std::span<const uint8_t> bytes, const std::string& file) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.starts_with("GGUF")) return;
  KT_CHECK_FORMAT(!text.empty(), file, ": is empty; download it again");

  // Lower-cased start, without the blanks or byte order mark a page may begin with.
  size_t from = text.starts_with("\xEF\xBB\xBF") ? 3 : 0;
  while (from < std::min<size_t>(text.size(), 64) &&
         std::isspace(static_cast<unsigned char>(text[from]))) {
    ++from;
  }
  std::string start(text.substr(from, 64));
  std::transform(start.begin(), start.end(), start.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  for (const Lookalike& row : kLookalikes) {
    KT_CHECK_FORMAT(!start.starts_with(row.start), file, ": ", row.advice);
  }
  KT_CHECK_FORMAT(text.substr(0, 10).find("{\"") != 8, file,
                  ": is a safetensors file; download a GGUF of the model");
  throw FormatError(concat(file, ": is not a GGUF file (it starts with ", quoted(text.substr(0, 8)),
                           "); download a GGUF of the model"));
}

void check_version(uint32_t version, const std::string& file) {
  if (version == 2 || version == 3) return;
  if (version == 1) {
    throw Unsupported(
        concat(file, ": is GGUF version 1 of 2023; download a newer file of the model"));
  }
  if ((version & 0xFFFF) == 0 && version != 0) {
    throw Unsupported(concat(file, ": is a big-endian GGUF file; download the little-endian one"));
  }
  throw FormatError(
      concat(file, ": GGUF version is ", version, ", known are 2 and 3", kDownloadAgain));
}

std::string describe_unknown_type(const std::string& file, std::string_view tensor, uint32_t id) {
  const bool is_int = id <= INT32_MAX;
  const char* known = is_int ? quant::refused_format(static_cast<int>(id)) : nullptr;
  return known != nullptr ? concat(file, ": tensor ", quoted(tensor), " has type ", known)
                          : concat(file, ": tensor ", quoted(tensor), " has type id ", id,
                                   ", which is unknown; choose another quantization of the model");
}

}  // namespace kt::gguf
