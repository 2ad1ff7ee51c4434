#include "quant/convert.h"

#include <cstring>

#include "quant/formats.h"
#include "quant/r16.h"

namespace kt::quant {
namespace {

// Number of blocks in each of `rows` rows that take `bytes` together.
template <class F>
size_t blocks_per_row(size_t bytes, size_t rows) {
  constexpr size_t kBytes = sizeof(typename F::Block);
  KT_CHECK(rows > 0 && bytes % rows == 0 && bytes / rows % kBytes == 0, F::kName, ": ", bytes,
           " bytes are no ", rows, " rows of ", kBytes, "-byte blocks");
  return bytes / rows / kBytes;
}

// Calls visit(record offset, row in the group, block offset) for every block of a matrix.
template <class F, class Visit>
void for_each_block(size_t rows, size_t blocks, Visit&& visit) {
  const size_t groups = (rows + R16<F>::kRows - 1) / R16<F>::kRows;
  for (size_t row = 0; row < rows; ++row) {
    for (size_t b = 0; b < blocks; ++b) {
      const int64_t record = r16_record<F>(groups, blocks, row / R16<F>::kRows, b);
      visit(record * R16<F>::kRecordBytes, static_cast<int>(row % R16<F>::kRows),
            (row * blocks + b) * R16<F>::kBlockBytes);
    }
  }
}

}  // namespace

size_t value_count(int gguf_id, size_t bytes) {
  const FormatInfo* info = find_format(gguf_id);
  if (!info) throw unsupported_format(gguf_id);
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

IntegerView integer_view(int gguf_id, std::span<const uint8_t> blocks) {
  IntegerView view;
  const size_t values = value_count(gguf_id, blocks.size());
  visit_format(gguf_id, [&]<class F>() {
    if constexpr (F::kGroup == 0) {
      throw Unsupported(concat(F::kName, " has no integer view"));
    } else {
      constexpr size_t kGroups = F::kValues / F::kGroup;
      view.offset = F::kOffset;
      view.u.resize(values);
      view.scale.resize(values / F::kGroup);
      if (F::kHasMin) view.min.resize(values / F::kGroup);
      typename F::Block block;
      for (size_t i = 0; i < values / F::kValues; ++i) {
        std::memcpy(&block, blocks.data() + i * sizeof block, sizeof block);
        unpack_ints(block, view.u.data() + i * F::kValues, view.scale.data() + i * kGroups,
                    F::kHasMin ? view.min.data() + i * kGroups : nullptr);
      }
    }
  });
  return view;
}

size_t r16_bytes(int gguf_id, size_t bytes, size_t rows) {
  size_t total = 0;
  visit_format(gguf_id, [&]<class F>() {
    const size_t groups = (rows + R16<F>::kRows - 1) / R16<F>::kRows;
    total = groups * blocks_per_row<F>(bytes, rows) * R16<F>::kRecordBytes;
  });
  return total;
}

void r16_pack(int gguf_id, std::span<const uint8_t> blocks, size_t rows, std::span<uint8_t> out) {
  KT_CHECK(out.size() == r16_bytes(gguf_id, blocks.size(), rows), "r16_pack: room for ", out.size(),
           " bytes, the records take ", r16_bytes(gguf_id, blocks.size(), rows));
  std::memset(out.data(), 0, out.size());  // rows missing in the last group
  visit_format(gguf_id, [&]<class F>() {
    typename F::Block block;
    for_each_block<F>(rows, blocks_per_row<F>(blocks.size(), rows),
                      [&](size_t record, int row, size_t at) {
                        std::memcpy(&block, blocks.data() + at, sizeof block);
                        r16_put<F>(block, row, out.data() + record);
                      });
  });
}

void r16_unpack(int gguf_id, std::span<const uint8_t> records, size_t rows,
                std::span<uint8_t> out) {
  KT_CHECK(records.size() == r16_bytes(gguf_id, out.size(), rows), "r16_unpack: ", records.size(),
           " bytes of records, ", rows, " rows take ", r16_bytes(gguf_id, out.size(), rows));
  visit_format(gguf_id, [&]<class F>() {
    typename F::Block block;
    for_each_block<F>(rows, blocks_per_row<F>(out.size(), rows),
                      [&](size_t record, int row, size_t at) {
                        r16_get<F>(records.data() + record, row, &block);
                        std::memcpy(out.data() + at, &block, sizeof block);
                      });
  });
}

}  // namespace kt::quant
