// 128 x 128 outputs per block, 32 values of k at a time, three stages of asynchronous copies.
//
//   8 warps as 2 x 4, each 64 x 32 outputs: 4 x 4 tensor-core tiles, 64 sums per thread
//   rows in shared memory are 80 bytes: eight rows' equal 16 bytes fill all 32 banks once
//
// Reads per multiply: a warp loads 4 + 2 fragments for 16 steps. mma.sync tops out well below
// Hopper's wgmma; a variant with it is worth writing only with a card to time it on.
#include "cuda/gemm/dense_gemm.h"

#include "base/error.h"
#include "cuda/common/device.h"

namespace kt::cuda {

namespace {

template <class T>
struct DenseGemm {
  using Params = DenseGemmParams;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  static constexpr int kTile = 128, kDepth = 32, kStages = 3, kRow = kDepth + 8;
  static constexpr unsigned kMatrixBytes = kTile * kRow * 2;
  static constexpr unsigned kSharedBytes = kStages * 2 * kMatrixBytes;

  KT_DEVICE static void load(const Params& p, int stage, int step) {
    const Shared<T> a = shared_at<T>(stage * 2 * kMatrixBytes);
    const Shared<T> b = shared_at<T>(stage * 2 * kMatrixBytes + kMatrixBytes);
    const Global<const T> x(static_cast<const T*>(p.x)), w(static_cast<const T*>(p.weights));
    KT_UNROLL
    for (int i = thread_id(); i < kTile * (kDepth / 8); i += kThreads) {
      const int row = i / (kDepth / 8), piece = i % (kDepth / 8),
                column = step * kDepth + piece * 8;
      const int token = block_y() * kTile + row, output = block_x() * kTile + row;
      const bool has_token = token < p.m && column < p.k, has_output = output < p.n && column < p.k;
      int64_t from = has_token ? token : 0;
      if (p.source && has_token) from = Global<const int32_t>(p.source)[token];
      async_copy16(a + (row * kRow + piece * 8), x + (has_token ? from * p.k + column : 0),
                   has_token);
      async_copy16(b + (row * kRow + piece * 8),
                   w + (has_output ? static_cast<int64_t>(output) * p.k + column : 0), has_output);
    }
  }

  KT_DEVICE static void run(const Params& p) {
    const int lane = lane_id(), warp_row = warp_id() / 4 * 64, warp_column = warp_id() % 4 * 32;
    const int steps = div_up(p.k, kDepth);
    FragmentD sums[4][4]{};
    KT_UNROLL
    for (int i = 0; i < kStages - 1; ++i) {
      if (i < steps) load(p, i, i);
      async_commit();
    }
    for (int step = 0; step < steps; ++step) {
      async_wait<kStages - 2>();
      sync();
      if (step + kStages - 1 < steps) load(p, (step + kStages - 1) % kStages, step + kStages - 1);
      async_commit();
      const unsigned at = step % kStages * 2 * kMatrixBytes;
      const Shared<T> a = shared_at<T>(at), b = shared_at<T>(at + kMatrixBytes);
      KT_UNROLL
      for (int k = 0; k < kDepth; k += 16) {
        FragmentA left[4];
        FragmentB right[4];
        KT_UNROLL
        for (int r = 0; r < 4; ++r) {
          const Words4 v =
              load_matrix4(a + ((warp_row + r * 16 + lane % 16) * kRow + k + lane / 16 * 8));
          left[r] = {{v.x[0], v.x[1], v.x[2], v.x[3]}};
        }
        KT_UNROLL
        for (int c = 0; c < 4; c += 2) {
          // Two tiles of 8 outputs at once: matrices (tile, k half).
          const Words4 v = load_matrix4(
              b + ((warp_column + c * 8 + lane / 16 * 8 + lane % 8) * kRow + k + lane / 8 % 2 * 8));
          right[c] = {{v.x[0], v.x[1]}};
          right[c + 1] = {{v.x[2], v.x[3]}};
        }
        KT_UNROLL
        for (int r = 0; r < 4; ++r) {
          KT_UNROLL
          for (int c = 0; c < 4; ++c) mma<T>(sums[r][c], left[r], right[c]);
        }
      }
    }
    KT_UNROLL
    for (int r = 0; r < 4; ++r) {
      KT_UNROLL
      for (int c = 0; c < 4; ++c) {
        KT_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int64_t row = block_y() * kTile + warp_row + r * 16 + lane / 4 + 8 * half;
          const int column = block_x() * kTile + warp_column + c * 8 + lane % 4 * 2;
          if (row >= p.m || column >= p.n) continue;
          const float v0 = sums[r][c].x[2 * half], v1 = sums[r][c].x[2 * half + 1];
          const int64_t pair = (row * p.n + column) / 2;
          if (p.float_out) {
            Global<Float2>(static_cast<Float2*>(p.y))[pair] = {{v0, v1}};
          } else {
            Global<uint32_t>(static_cast<uint32_t*>(p.y))[pair] = pack2<T>(v0, v1);
          }
        }
      }
    }
  }
};

}  // namespace

void launch_dense_gemm(const DenseGemmParams& p) {
  KT_CHECK(p.m > 0 && p.n > 0 && p.k > 0, "empty product ", p.m, " x ", p.n, " x ", p.k);
  KT_CHECK(p.k % 8 == 0, "k=", p.k, " must be a multiple of 8");
  KT_CHECK(p.n % 2 == 0, "n=", p.n, " must be even");
  const LaunchShape shape{.grid_x = unsigned(div_up(p.n, 128)),
                          .grid_y = unsigned(div_up(p.m, 128)),
                          .threads = 256,
                          .shared_bytes = DenseGemm<half_t>::kSharedBytes};
  if (p.bf16) return launch<DenseGemm<bf16_t>>(shape, p, p.stream);
  launch<DenseGemm<half_t>>(shape, p, p.stream);
}

}  // namespace kt::cuda
