// Saying what a file is that is not a GGUF file we read.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace kt::gguf {

/// Raises: FormatError naming what the first bytes look like (Git LFS pointer, web page, ...).
void check_magic(std::span<const uint8_t> bytes, const std::string& file);

/// Raises: Unsupported for version 1 and big-endian files, FormatError for unknown versions.
void check_version(uint32_t version, const std::string& file);

/// The message for a tensor type this build cannot read.
std::string describe_unknown_type(const std::string& file, std::string_view tensor, uint32_t id);

}  // namespace kt::gguf
