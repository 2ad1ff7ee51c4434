// A warp per row, lanes over pairs: the row is read for its largest value, and again (from L1) to
// be divided and rounded.
#include "cuda/gemm/rows16.h"

#include "base/error.h"
#include "cuda/common/activation.h"
#include "cuda/common/typed_launch.h"
#include "cuda/layer/block_reduce.h"

namespace kt::cuda {

namespace {

template <class T>
struct Rows16 {
  using Params = Rows16Params;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  KT_DEVICE static void run(const Params& p) {
    const int row = block_x() * (kThreads / 32) + warp_id(), lane = lane_id();
    if (row >= p.rows) return;
    const int source = p.source ? int{Global<const int32_t>(p.source)[row]} : row;
    const bool present = source >= 0;
    const int from = !present ? 0 : p.in_place ? row : source;
    const ActivatedRow<T> value{p.x, p.up, from * p.stride};
    float largest = 0;
    if (present)
      for (int i = lane; i < p.k; i += 32) largest = max(largest, abs(value(i)));
    largest = warp_max(largest);
    const auto [scale, inverse] = row_scale(largest);
    if (lane == 0) Global<float>(p.scales)[row] = scale;
    const Global<uint32_t> out(reinterpret_cast<uint32_t*>(p.out));
    for (int i = lane; i < p.k / 2; i += 32)
      out[static_cast<int64_t>(row) * (p.k / 2) + i] =
          present ? pack2<half_t>(value(2 * i) * inverse, value(2 * i + 1) * inverse) : 0;
  }
};

}  // namespace

void launch_rows16(const Rows16Params& p) {
  KT_CHECK(p.rows > 0 && p.k > 0 && p.k % 2 == 0, p.rows, " rows of ", p.k,
           " values: there must be some, and an even number");
  KT_CHECK(p.stride >= p.k, "rows of ", p.stride, " values hold no ", p.k);
  const LaunchShape shape{.grid_x = static_cast<unsigned>(div_up(p.rows, 8)), .threads = 256};
  launch_typed<Rows16>(p.type, "activations", shape, p);
}

}  // namespace kt::cuda
