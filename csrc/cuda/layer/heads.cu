// Products with a matrix per head. A warp takes 4 rows of one head's matrix and up to 8 tokens,
// lanes over pairs of k; the 4 rows keep as many loads under way.
#include "base/error.h"
#include "cuda/layer/block_reduce.h"
#include "cuda/layer/layer.h"

namespace kt::cuda {

namespace {

template <class T>
KT_DEVICE Float2 load_pair(const void* x, int64_t at);
template <>
KT_DEVICE Float2 load_pair<float>(const void* x, int64_t at) {
  const Float2 v = Global<const Float2>(static_cast<const Float2*>(x))[at / 2];
  return v;
}
template <>
KT_DEVICE Float2 load_pair<half_t>(const void* x, int64_t at) {
  const uint32_t v = Global<const uint32_t>(static_cast<const uint32_t*>(x))[at / 2];
  return unpack2<half_t>(v);
}

template <class T, int kTokens>
struct HeadProduct {
  using Params = HeadProductParams;
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 1;
  static constexpr int kRows = 4;
  KT_DEVICE static void run(const Params& p) {
    const int first_row = (block_x() * 4 + warp_id()) * kRows, head = block_y();
    const int first = block_z() * kTokens;
    if (first_row >= p.n) return;
    const Global<const uint32_t> w(static_cast<const uint32_t*>(p.weights));
    const int64_t matrix = static_cast<int64_t>(head) * p.n;
    float sums[kRows][kTokens] = {};
    for (int i = lane_id(); i < p.k / 2; i += 32) {
      Float2 weight[kRows];
      KT_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const int row = min(first_row + r, p.n - 1);
        const uint32_t pair = w[(matrix + row) * (p.k / 2) + i];
        weight[r] = unpack2<half_t>(pair);
      }
      KT_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        if (first + t >= p.m) continue;
        const Float2 x =
            load_pair<T>(p.x, (first + t) * p.token_stride + head * p.head_stride + 2 * i);
        KT_UNROLL
        for (int r = 0; r < kRows; ++r)
          sums[r][t] = fma(weight[r].x[0], x.x[0], fma(weight[r].x[1], x.x[1], sums[r][t]));
      }
    }
    KT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      KT_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        const float total = warp_sum(sums[r][t]);
        if (lane_id() == 0 && first_row + r < p.n && first + t < p.m)
          Global<float>(
              p.y)[(static_cast<int64_t>(first + t) * p.heads + head) * p.n + first_row + r] =
              total;
      }
    }
  }
};

template <class T>
void launch_typed(const HeadProductParams& p) {
  const unsigned rows = unsigned(div_up(p.n, 16)), heads = unsigned(p.heads);
  if (p.m == 1)
    return launch<HeadProduct<T, 1>>({.grid_x = rows, .grid_y = heads, .threads = 128}, p,
                                     p.stream);
  launch<HeadProduct<T, 8>>(
      {.grid_x = rows, .grid_y = heads, .grid_z = unsigned(div_up(p.m, 8)), .threads = 128}, p,
      p.stream);
}

/// A block copies kThreads words of every piece, and goes on in steps of the grid.
struct CopyKernel {
  using Params = CopyParams;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  KT_DEVICE static void run(const Params& p) {
    for (int piece = 0; piece < p.count; ++piece) {
      const Global<const uint32_t> from(static_cast<const uint32_t*>(p.pieces[piece].from));
      const Global<uint32_t> to(static_cast<uint32_t*>(p.pieces[piece].to));
      for (int64_t i = static_cast<int64_t>(block_x()) * kThreads + thread_id();
           i < p.pieces[piece].bytes / 4; i += static_cast<int64_t>(grid_x()) * kThreads) {
        const uint32_t v = from[i];
        to[i] = v;
      }
    }
  }
};

}  // namespace

void launch_head_product(const HeadProductParams& p) {
  KT_CHECK(p.m > 0 && p.heads > 0 && p.n > 0 && p.k > 0 && p.k % 2 == 0, "head product of ", p.m,
           " x ", p.heads, " heads, ", p.n, " x ", p.k);
  KT_CHECK(p.token_stride % 2 == 0 && p.head_stride % 2 == 0, "strides ", p.token_stride, " and ",
           p.head_stride, " must be even");
  if (p.x_is_f16) return launch_typed<half_t>(p);
  launch_typed<float>(p);
}

void launch_copy(const CopyParams& p) {
  KT_CHECK(p.count > 0 && p.count <= CopyParams::kMost, p.count, " pieces");
  int64_t most = 0;
  for (int i = 0; i < p.count; ++i) {
    KT_CHECK(p.pieces[i].bytes % 4 == 0, p.pieces[i].bytes, " bytes must be a multiple of 4");
    most = p.pieces[i].bytes > most ? p.pieces[i].bytes : most;
  }
  const int64_t blocks = div_up<int64_t>(most, 4 * CopyKernel::kThreads);
  launch<CopyKernel>({.grid_x = unsigned(blocks < 1    ? 1
                                         : blocks > 64 ? 64
                                                       : blocks),
                      .threads = CopyKernel::kThreads},
                     p, p.stream);
}

}  // namespace kt::cuda
