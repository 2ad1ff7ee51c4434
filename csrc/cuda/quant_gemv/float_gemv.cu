// Products with float weights on prepared activations: what quantised ones get, for models whose
// matrices are F16, BF16 or F32. A warp takes a row of W and a tile of 8 tokens; lane l has token
// l / 4 and, of every 16 values, the four that stand in its fragment.
#include "base/error.h"
#include "cuda/common/device.h"
#include "cuda/quant_gemv/quant_gemv.h"
#include "quant/formats.h"

namespace kt::cuda {

bool launch_float_gemv(const GemvParams& p);

namespace {

template <class T>
struct FloatGemv {
  using Params = GemvParams;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  KT_DEVICE static void run(const Params& p) {
    const int items = p.num_items ? int{Global<const int32_t>(p.num_items)[0]} : p.max_items;
    const int row = block_x() * 8 + warp_id(), index = block_z();
    if (row >= p.n || index >= items) return;
    const GemvItem item = Global<const GemvItem>(p.items)[index];
    if (static_cast<int>(block_y()) >= item.tiles) return;
    const int64_t tile = item.first_tile + static_cast<int>(block_y());
    const int lane = lane_id(), runs = p.k / 16;
    const Global<const T> w = Global<const T>(reinterpret_cast<const T*>(item.weights)) +
                              (static_cast<int64_t>(row) * p.k + lane % 4 * 4);
    const Global<const Words2> x =
        Global<const Words2>(reinterpret_cast<const Words2*>(p.x.fragments)) + tile * runs * 32;
    float sum = 0;
    for (int run = 0; run < runs; ++run) {
      const Words2 fragment = x[run * 32 + lane];
      KT_UNROLL
      for (int h = 0; h < 2; ++h) {
        const Float2 values = unpack2<half_t>(fragment.x[h]);
        sum = fma(to_float(T(w[run * 16 + 2 * h])), values.x[0], sum);
        sum = fma(to_float(T(w[run * 16 + 2 * h + 1])), values.x[1], sum);
      }
    }
    sum += shuffle_xor(sum, 1u);
    sum += shuffle_xor(sum, 2u);
    const int64_t slot = tile * 8 + lane / 4;
    if (lane % 4 == 0)
      Global<float>(p.y)[slot * p.n + row] = sum * Global<const float>(p.x.scales)[slot];
  }
};

}  // namespace

bool launch_float_gemv(const GemvParams& p) {
  if (p.layout != WeightLayout::kRows) return false;
  const LaunchShape shape{.grid_x = unsigned(div_up(p.n, 8)),
                          .grid_y = unsigned(p.max_tiles),
                          .grid_z = unsigned(p.max_items),
                          .threads = 256};
  if (p.gguf_id == quant::F16::kGgufId) {
    launch<FloatGemv<half_t>>(shape, p, p.stream);
  } else if (p.gguf_id == quant::BF16::kGgufId) {
    launch<FloatGemv<bf16_t>>(shape, p, p.stream);
  } else if (p.gguf_id == quant::F32::kGgufId) {
    launch<FloatGemv<float>>(shape, p, p.stream);
  } else {
    return false;
  }
  return true;
}

}  // namespace kt::cuda
