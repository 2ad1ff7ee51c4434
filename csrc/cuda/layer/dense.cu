// Products with float weights: a warp per row of W and up to 8 tokens, lanes over k, sums in float.
#include "base/error.h"
#include "cuda/common/typed_launch.h"
#include "cuda/layer/block_reduce.h"
#include "cuda/layer/layer.h"

namespace kt::cuda {

namespace {

template <class T>
struct DenseGemv {
  using Params = DenseGemvParams;
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 1;
  static constexpr int kTokens = 8;
  KT_DEVICE static void run(const Params& p) {
    const int row = block_x() * 4 + warp_id(), first = block_y() * kTokens;
    if (row >= p.n) return;
    const Global<const T> w =
        Global<const T>(static_cast<const T*>(p.weights)) + static_cast<int64_t>(row) * p.k;
    const Global<const float> x = Global<const float>(p.x) + static_cast<int64_t>(first) * p.k;
    const int tokens = min(kTokens, p.m - first);
    float sums[kTokens] = {};
    for (int i = lane_id(); i < p.k; i += 32) {
      const float weight = to_float(T(w[i]));
      KT_UNROLL
      for (int t = 0; t < kTokens; ++t)
        if (t < tokens) sums[t] = fma(weight, x[static_cast<int64_t>(t) * p.k + i], sums[t]);
    }
    KT_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      const float total = warp_sum(sums[t]);
      if (t < tokens && lane_id() == 0)
        Global<float>(p.y)[static_cast<int64_t>(first + t) * p.n + row] = total;
    }
  }
};

}  // namespace

void launch_dense_gemv(const DenseGemvParams& p) {
  KT_CHECK(p.m > 0 && p.n > 0 && p.k > 0, "empty product ", p.m, " x ", p.n, " x ", p.k);
  const LaunchShape shape{
      .grid_x = unsigned(div_up(p.n, 4)), .grid_y = unsigned(div_up(p.m, 8)), .threads = 128};
  launch_typed<DenseGemv>(p.type, "weights", shape, p);
}

}  // namespace kt::cuda
