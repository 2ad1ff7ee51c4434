#include "quant/convert.h"

#include <cstring>

#include "quant/formats.h"

namespace kt::quant {

size_t value_count(int gguf_id, size_t bytes) {
  const FormatInfo* info = find_format(gguf_id);
  if (!info) throw Unsupported(concat("weight type id ", gguf_id, " is not supported"));
  KT_CHECK(bytes % info->bytes_per_block == 0, info->name, ": ", bytes,
           " bytes are no whole number of ", info->bytes_per_block, "-byte blocks");
  return bytes / info->bytes_per_block * info->values_per_block;
}

void dequantize(int gguf_id, std::span<const uint8_t> blocks, std::span<float> out) {
  KT_CHECK(value_count(gguf_id, blocks.size()) == out.size(), "dequantize: room for ", out.size(),
           " values, the blocks hold ", value_count(gguf_id, blocks.size()));
  visit_format(gguf_id, [&]<class F>() {
    typename F::Block block;
    const size_t count = blocks.size() / sizeof block;
    for (size_t i = 0; i < count; ++i) {
      std::memcpy(&block, blocks.data() + i * sizeof block, sizeof block);  // may be unaligned
      unpack(block, out.data() + i * F::kValues);
    }
  });
}

}  // namespace kt::quant
