#include "cuda/int4_gemm/placed.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>

#include "base/error.h"
#include "base/os.h"
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
  KT_CHECK(m.group == 32 || m.group == 64 || m.group == 128, "no int4 matrix has the type ", type);
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
  std::atomic<size_t> next{0};
  std::vector<std::exception_ptr> failures(std::clamp<size_t>(threads, 1, strips));
  const auto work = [&](size_t self) noexcept {
    try {
      for (size_t strip; (strip = next.fetch_add(1)) < strips;) convert(strip);
    } catch (...) {
      failures[self] = std::current_exception();
      next.store(strips);
    }
  };
  std::vector<os::Thread> others;
  for (size_t i = 1; i < failures.size(); ++i) others.emplace_back(work, i);
  work(0);
  for (os::Thread& thread : others) thread.join();
  for (const std::exception_ptr& failure : failures)
    if (failure) std::rethrow_exception(failure);
  for (const Int4Error& one : errors)
    made.error.squared += one.squared, made.error.power += one.power;
  return made;
}

}  // namespace kt::cuda
