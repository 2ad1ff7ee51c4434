// Weight types that exist in GGUF files but that we do not read: a user who has such a file is told
// the type's name and what to do, not a number.
#pragma once

#include <string>

#include "base/error.h"

namespace kt::quant {

struct RefusedFormat {
  int gguf_id;
  const char* name;
  const char* reason;
};

/// The whole table, ended by a row whose name is nullptr.
const RefusedFormat* refused_formats();

/// "iq4_ks: only ik_llama.cpp writes this type; ..." for a type in the table, else nullptr.
const char* refused_format(int gguf_id);

/// What to throw for an id that is not in the list of formats.
Unsupported unsupported_format(int gguf_id);

}  // namespace kt::quant
