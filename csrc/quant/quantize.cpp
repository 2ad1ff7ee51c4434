#include "quant/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "quant/formats.h"
#include "quant/quantize_blocks.h"

namespace kt::quant {
namespace {

constexpr float kLargestHalf = 65504.0f;

void set_plain(float x, F32::Block* block) { block->value = x; }
void set_plain(float x, F16::Block* block) { block->bits = float_to_half(x); }
void set_plain(float x, BF16::Block* block) { block->bits = float_to_bf16(x); }

std::string writable_formats() {
  std::string names;
  for_each_format([&]<class F>() {
    if (kCanQuantize<F>) names += std::string(names.empty() ? "" : ", ") + F::kName;
  });
  return names;
}

void check_values(const char* name, std::span<const float> x, size_t k, float largest) {
  for (size_t i = 0; i < x.size(); ++i) {
    KT_CHECK(std::fabs(x[i]) <= largest, "quantize to ", name, ": row ", i / k, ", column ", i % k,
             " is ", x[i], "; values must lie within -", largest, " .. ", largest);
  }
}

// The weights of one block's values. Columns that never mattered get a little weight, so that the
// search is well defined and their values are not arbitrary.
void block_weights(std::span<const float> importance, size_t first, int n, float* w) {
  if (importance.empty()) {
    std::fill(w, w + n, 1.0f);
    return;
  }
  float largest = 0;
  for (int i = 0; i < n; ++i) largest = std::max(largest, importance[first + i]);
  for (int i = 0; i < n; ++i)  // only ratios matter
    w[i] = largest > 0 ? std::max(importance[first + i] / largest, 1e-4f) : 1.0f;
}

template <class F>
void quantize_rows(std::span<const float> x, size_t k, std::span<const float> importance,
                   uint8_t* out) {
  typename F::Block block;
  float w[F::kValues];
  for (size_t i = 0; i < x.size(); i += F::kValues, out += sizeof block) {
    if constexpr (F::kGroup == 0) {
      set_plain(x[i], &block);
    } else {
      block_weights(importance, i % k, F::kValues, w);
      quantize_block(x.data() + i, w, &block);
    }
    std::memcpy(out, &block, sizeof block);
  }
}

}  // namespace

bool can_quantize(int gguf_id) {
  bool can = false;
  visit_format(gguf_id, [&]<class F>() { can = kCanQuantize<F>; });
  return can;
}

size_t row_bytes(int gguf_id, size_t k) {
  const FormatInfo* info = find_format(gguf_id);
  if (!info) throw unsupported_format(gguf_id);
  KT_CHECK(k > 0 && k % info->values_per_block == 0, info->name, ": rows of ", k,
           " values are no whole number of blocks of ", info->values_per_block);
  return k / info->values_per_block * info->bytes_per_block;
}

void quantize(int gguf_id, std::span<const float> x, size_t k, std::span<const float> importance,
              std::span<uint8_t> out) {
  const size_t bytes = row_bytes(gguf_id, k);
  KT_CHECK(x.size() % k == 0 && out.size() == x.size() / k * bytes, "quantize: ", x.size(),
           " values in rows of ", k, " do not give ", out.size(), " bytes");
  KT_CHECK(importance.empty() || importance.size() == k, "quantize: ", importance.size(),
           " importances for rows of ", k, " values");
  for (size_t i = 0; i < importance.size(); ++i) {
    KT_CHECK(importance[i] >= 0 && std::isfinite(importance[i]), "quantize: importance of column ",
             i, " is ", importance[i], "; it must be finite and not negative");
  }
  visit_format(gguf_id, [&]<class F>() {
    if constexpr (kCanQuantize<F>) {
      if (F::kGroup > 0) check_values(F::kName, x, k, kLargestHalf);
      quantize_rows<F>(x, k, importance, out.data());
    } else {
      throw Unsupported(concat("nothing here can write ", F::kName, "; try one of ",
                               writable_formats()));
    }
  });
}

}  // namespace kt::quant
