// The second pass over a file that is well formed: does what it says make a model?
#pragma once

#include "gguf/file.h"

namespace kt::gguf {

/// Checks the facts every architecture shares: general.architecture; layer, head, expert and width
/// counts in range; every number under "<architecture>." finite; tokens = rows of token_embd.weight
/// = scores = token types; special token ids below the number of tokens; the split of width to
/// heads. Raises: FormatError naming file, key and value.
void check_model(const File& file);

}  // namespace kt::gguf
