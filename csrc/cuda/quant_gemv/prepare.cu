// Activations -> tensor-core fragments (quant_gemv.h: Prepared). A block takes one tile of 8
// tokens, a warp one token: its largest value gives the scale, then runs of 16 are divided, rounded
// and summed. Reads x twice; the second time from L1.
#include "base/error.h"
#include "cuda/common/activation.h"
#include "cuda/common/typed_launch.h"
#include "cuda/quant_gemv/quant_gemv.h"

namespace kt::cuda {

namespace {

template <class T>
struct Prepare {
  using Params = PrepareParams;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  KT_DEVICE static void run(const Params& p) {
    const int token = warp_id(), lane = lane_id(), tile = block_x();
    const int slot = tile * 8 + token;
    const int source = p.source ? int{Global<const int32_t>(p.source)[slot]} : slot;
    const int row = p.in_place && source >= 0 ? slot : source;
    const bool present = row >= 0 && row < p.rows;
    const ActivatedRow<T> value{p.x, p.up, (present ? row : 0) * p.stride};
    float largest = 0;
    if (present)
      for (int i = lane; i < p.k; i += 32) largest = max(largest, abs(value(i)));
    for (unsigned mask = 16; mask; mask /= 2) largest = max(largest, shuffle_xor(largest, mask));
    const auto [scale, inverse] = row_scale(largest);
    if (lane == 0) Global<float>(p.out.scales)[slot] = present ? scale : 0.0f;
    const Global<Words2> fragments(reinterpret_cast<Words2*>(p.out.fragments));
    const int runs = p.k / 16;
    // Four lanes make one run of 16, eight runs at a time.
    for (int first = 0; first < runs; first += 8) {
      const int run = first + lane / 4;
      float v[4], sum = 0;
      KT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const bool there = present && run < runs;
        v[i] = there ? value(run * 16 + lane % 4 * 4 + i) * inverse : 0.0f;
        sum += v[i];
      }
      sum += shuffle_xor(sum, 1u);
      sum += shuffle_xor(sum, 2u);
      if (run < runs) {
        const int64_t at = static_cast<int64_t>(tile) * runs + run;
        fragments[at * 32 + token * 4 + lane % 4] = {
            {pack2<half_t>(v[0], v[1]), pack2<half_t>(v[2], v[3])}};
        if (lane % 4 == 0) Global<float>(p.out.sums)[at * 8 + token] = sum;
      }
    }
  }
};

}  // namespace

void launch_prepare(const PrepareParams& p) {
  KT_CHECK(p.k > 0 && p.k % 32 == 0, "k=", p.k, " must be a multiple of 32");
  KT_CHECK(p.tiles > 0, "no tokens");
  KT_CHECK(p.stride >= p.k, "rows of ", p.stride, " values hold no ", p.k);
  const LaunchShape shape{.grid_x = static_cast<unsigned>(p.tiles), .threads = 256};
  launch_typed<Prepare>(p.type, "activations", shape, p);
}

}  // namespace kt::cuda
