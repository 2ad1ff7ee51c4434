// A block takes a unit, 64 rows of 64 values: each of its 4 warps unpacks one step of 16 values to
// shared memory, and all write the rows, 128 bytes each, from there. Lanes find codes and scales as
// the product does (kernel.h).
#include "cuda/int4_gemm/dequantise_int4.h"

#include "base/error.h"
#include "cuda/int4_gemm/dequantise.h"

namespace kt::cuda {

namespace {

struct DequantiseInt4 {
  using Params = DequantiseInt4Params;
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 4;
  static constexpr int kRow = 64 + 8;  // halves between rows: equal pieces in different banks
  static constexpr unsigned kSharedBytes = 64 * kRow * 2;

  KT_DEVICE static void run(const Params& p) {
    const int units = p.k / 64, strips = div_up(p.n, 64), lane = lane_id(), step = warp_id();
    const int unit = block_x() % units, strip = p.first / 64 + block_x() / units;
    const int group = (unit * 64 + step * 16) / p.group;
    const int64_t scale_at = (static_cast<int64_t>(group) * strips + strip) * 8 + lane / 4;
    const Words4 codes = Global<const Words4>(reinterpret_cast<const Words4*>(
        p.weights))[((static_cast<int64_t>(strip) * units + unit) * 4 + step) * 32 + lane];
    const Words4 scale = Global<const Words4>(static_cast<const Words4*>(p.scales))[scale_at];
    Words4 offset{};
    if (p.offsets) offset = Global<const Words4>(static_cast<const Words4*>(p.offsets))[scale_at];
    const Shared<uint32_t> rows = shared_at<uint32_t>(0);
    KT_UNROLL
    for (int j = 0; j < 4; ++j) {
      uint32_t pairs[4];
      int4_pairs<half_t>(codes.x[j], pairs);
      KT_UNROLL
      for (int sub = 0; sub < 2; ++sub) {
        const unsigned pick = sub ? 0x3232 : 0x1010;
        const uint32_t scale2 = byte_permute(scale.x[j], 0, pick);
        const int row = j * 16 + sub * 8 + lane / 4;
        KT_UNROLL
        for (int h = 0; h < 2; ++h) {
          const uint32_t pair = pairs[2 * sub + h];
          rows[(row * kRow + step * 16 + h * 8) / 2 + lane % 4] =
              p.offsets ? fma2<half_t>(pair, scale2, byte_permute(offset.x[j], 0, pick))
                        : mul2<half_t>(pair, scale2);
        }
      }
    }
    sync();
    const Shared<Words4> pieces = shared_at<Words4>(0);
    const Global<Words4> out(reinterpret_cast<Words4*>(p.out));
    for (int i = thread_id(); i < 64 * 8; i += kThreads) {
      const int row = strip * 64 + i / 8 - p.first;
      if (row < 0 || row >= p.rows) continue;
      const Words4 piece = pieces[i / 8 * (kRow / 8) + i % 8];
      out[static_cast<int64_t>(row) * (p.k / 8) + unit * 8 + i % 8] = piece;
    }
  }
};

}  // namespace

void launch_dequantise_int4(const DequantiseInt4Params& p) {
  KT_CHECK(p.first >= 0 && p.rows > 0 && p.rows <= p.n - p.first, p.rows, " rows from ", p.first,
           " of ", p.n);
  KT_CHECK(is_int4_group(p.group), "group=", p.group, " must be 32, 64 or 128");
  KT_CHECK(p.k > 0 && p.k % 64 == 0 && p.k % p.group == 0, "k=", p.k,
           " must be a multiple of 64 and of the group of ", p.group);
  const int strips = (p.first + p.rows - 1) / 64 - p.first / 64 + 1;
  launch<DequantiseInt4>({.grid_x = static_cast<unsigned>(strips * (p.k / 64)),
                          .threads = DequantiseInt4::kThreads,
                          .shared_bytes = DequantiseInt4::kSharedBytes},
                         p, p.stream);
}

}  // namespace kt::cuda
