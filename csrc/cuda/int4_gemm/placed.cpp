#include "cuda/int4_gemm/placed.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/os_team.h"
#include "quant/convert.h"
#include "quant/formats.h"
#include "quant/quantize.h"

namespace kt::cuda {

namespace {

constexpr int kStrip = 64;  // rows that stand together in pack.h
constexpr FloatType kScales = FloatType::kF16;

/// What group 0 means for a format, and whether a group has offsets.
PlacedInt4 form_of(int gguf_id, int n, int k, int group) {
  const bool plain = gguf_id == quant::Q4_0::kGgufId;
  const bool affine = gguf_id == quant::Q4_1::kGgufId || gguf_id == quant::Q4_K::kGgufId;
  if (group == 0) group = plain || affine ? 32 : 64;
  KT_CHECK(is_int4_group(group), "no int4 matrix has groups of ", group);
  return {n, k, group, group == 32 && !plain};
}

}  // namespace

void PlacedInt4::set(Int4GemmParams& p, const uint8_t* at) const {
  p.weights = at, p.scales = at + weight_bytes();
  p.offsets = has_offsets ? at + weight_bytes() + scale_bytes() : nullptr;
  p.n = n, p.k = k, p.group = group, p.type = kScales;
}

PlacedInt4 placed_int4(int type, int n, int k) {
  const PlacedInt4 m{n, k, -type & ~1, (-type & 1) != 0};
  KT_CHECK(is_int4_group(m.group), "no int4 matrix has the type ", type);
  KT_CHECK(n > 0 && k > 0 && k % 64 == 0 && k % m.group == 0, "an int4 matrix of ", n, " x ", k,
           " in groups of ", m.group, ": columns must be a multiple of 64 and of the group");
  return m;
}

ConvertedInt4 convert_int4(std::span<const uint8_t> blocks, int gguf_id, int n, int k, int group,
                           int threads) {
  const PlacedInt4 m = placed_int4(form_of(gguf_id, n, k, group).type(), n, k);
  const size_t row_bytes = quant::row_bytes(gguf_id, k), strips = div_up(n, kStrip);
  KT_CHECK(blocks.size() == row_bytes * n, blocks.size(), " bytes are no ", n, " x ", k,
           " of GGUF type ", gguf_id);
  ConvertedInt4 made{m, std::vector<uint8_t>(m.bytes()), {}};
  std::vector<Int4Error> errors(strips);
  const auto convert = [&](size_t strip) {
    const size_t first = strip * kStrip, rows = std::min<size_t>(kStrip, n - first);
    const PackedInt4 packed =
        pack_int4(int4_from_gguf(blocks.subspan(first * row_bytes, rows * row_bytes), gguf_id,
                                 static_cast<int>(rows), k, m.group, !m.has_offsets, kScales,
                                 &errors[strip]),
                  kScales);
    KT_CHECK(std::isfinite(errors[strip].power), "rows ", first, " to ", first + rows - 1,
             " have values that are not finite");
    const size_t strip_bytes = packed.weights.size();
    std::memcpy(made.bytes.data() + strip * strip_bytes, packed.weights.data(), strip_bytes);
    uint8_t* to = made.bytes.data() + m.weight_bytes();
    for (const std::vector<uint16_t>* from : {&packed.scales, &packed.offsets}) {
      for (size_t g = 0; g * kStrip < from->size(); ++g)
        std::memcpy(to + (g * strips + strip) * kStrip * 2, from->data() + g * kStrip, kStrip * 2);
      to += m.scale_bytes();
    }
  };
  os::Pieces left(strips);
  os::share(left, std::clamp<size_t>(std::max(threads, 1), 1, strips), [&](size_t) {
    for (size_t strip; left.take(strip);) convert(strip);
  });
  for (const Int4Error& one : errors)
    made.error.squared += one.squared, made.error.power += one.power;
  return made;
}

}  // namespace kt::cuda
