// 128 x 128 outputs per block, 32 values of k at a time, three stages of asynchronous copies.
//
//   8 warps as 2 x 4, each 64 x 32 outputs: 4 x 4 tensor-core tiles, 64 sums per thread
//   rows in shared memory are 80 bytes: eight rows' equal 16 bytes fill all 32 banks once
//
// Blocks that follow one another have other tokens and the same weights: there are few blocks of
// tokens, and so a matrix comes out of memory once for all of them. Warps whose outputs all lie
// beyond an edge multiply nothing.
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

  static constexpr int kPieces = kDepth / 8;  // of 16 bytes, in a row of a step
  static constexpr int kOwn = kTile * kPieces / kThreads;  // that a thread copies, of x and of w

  /// A block's product, and where the thread's pieces of its rows begin.
  struct Product {
    GemmRun run;
    Global<const T> x[kOwn], w[kOwn];
    bool has_x[kOwn], has_w[kOwn];
  };
  /// The row of x that a token of the run has.
  KT_DEVICE static int64_t source(const Params& p, const GemmRun& run, int token) {
    const int at = run.first + token;
    return p.source ? int{Global<const int32_t>(p.source)[at]} : at;
  }
  KT_DEVICE static Product product(const Params& p) {
    const int index = block_z();
    Product made{{0, p.m, 0}, {}, {}, {}, {}};
    if (p.has_runs) made.run = p.runs[index];
    const Global<const T> x = Global<const T>(static_cast<const T*>(p.x)) + index * p.x_step;
    const Global<const T> w = Global<const T>(static_cast<const T*>(p.weights)) + index * p.w_step;
    KT_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      const int row = (thread_id() + i * kThreads) / kPieces, piece = thread_id() % kPieces * 8;
      const int token = block_x() * kTile + row, output = block_y() * kTile + row;
      made.has_x[i] = token < made.run.rows, made.has_w[i] = output < p.n;
      made.x[i] = x + (made.has_x[i] ? source(p, made.run, token) * p.x_stride : 0) + piece;
      made.w[i] = w + static_cast<int64_t>(made.has_w[i] ? output : 0) * p.k + piece;
    }
    return made;
  }

  KT_DEVICE static void load(const Params& p, const Product& product, int stage, int step) {
    const Shared<T> a = shared_at<T>(stage * 2 * kMatrixBytes);
    const Shared<T> b = shared_at<T>(stage * 2 * kMatrixBytes + kMatrixBytes);
    const int piece = thread_id() % kPieces * 8;
    const bool is_there = step * kDepth + piece < p.k;
    const int column = is_there ? step * kDepth : 0;
    KT_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      const int at = (thread_id() + i * kThreads) / kPieces * kRow + piece;
      async_copy16(a + at, product.x[i] + column, product.has_x[i] && is_there);
      async_copy16(b + at, product.w[i] + column, product.has_w[i] && is_there);
    }
  }

  KT_DEVICE static void run(const Params& p) {
    const Product product = DenseGemm::product(p);
    const int first_row = block_x() * kTile, first_column = block_y() * kTile;
    if (first_row >= product.run.rows) return;
    const int lane = lane_id(), warp_row = warp_id() / 4 * 64, warp_column = warp_id() % 4 * 32;
    const bool multiplies =
        first_row + warp_row < product.run.rows && first_column + warp_column < p.n;
    const int steps = div_up(p.k, kDepth);
    FragmentD sums[4][4]{};
    KT_UNROLL
    for (int i = 0; i < kStages - 1; ++i) {
      if (i < steps) load(p, product, i, i);
      async_commit();
    }
    for (int step = 0; step < steps; ++step) {
      async_wait<kStages - 2>();
      sync();
      if (step + kStages - 1 < steps)
        load(p, product, (step + kStages - 1) % kStages, step + kStages - 1);
      async_commit();
      if (!multiplies) continue;
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
    if (multiplies) store(p, product.run, first_row + warp_row, first_column + warp_column, sums);
  }

  KT_DEVICE static void store(const Params& p, const GemmRun& run, int row_at, int column_at,
                              const FragmentD (&sums)[4][4]) {
    const int lane = lane_id();
    const int64_t step = block_z() * p.y_step;
    KT_UNROLL
    for (int r = 0; r < 4; ++r) {
      KT_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int row = row_at + r * 16 + lane / 4 + 8 * half;
        if (row >= run.rows) continue;
        const float scale =
            p.scales ? float{Global<const float>(p.scales)[source(p, run, row)]} : 1.0f;
        KT_UNROLL
        for (int c = 0; c < 4; ++c) {
          const int column = column_at + c * 8 + lane % 4 * 2;
          if (column >= p.n) continue;
          const float v0 = sums[r][c].x[2 * half], v1 = sums[r][c].x[2 * half + 1];
          const int64_t pair = (step + (run.out + row) * p.y_stride + column) / 2;
          if (p.float_out) {
            Global<Float2>(static_cast<Float2*>(p.y))[pair] = {{v0 * scale, v1 * scale}};
          } else {
            Global<uint32_t>(static_cast<uint32_t*>(p.y))[pair] = pack2<T>(v0, v1);
          }
        }
      }
    }
  }
};

}  // namespace

void launch_dense_gemm(const DenseGemmParams& given) {
  DenseGemmParams p = given;
  KT_CHECK(p.m > 0 && p.n > 0 && p.k > 0 && p.products > 0, "empty product ", p.m, " x ", p.n,
           " x ", p.k, ", ", p.products, " of them");
  KT_CHECK(p.k % 8 == 0, "k=", p.k, " must be a multiple of 8");
  KT_CHECK(p.n % 2 == 0, "n=", p.n, " must be even");
  if (p.x_stride == 0) p.x_stride = p.k;
  if (p.y_stride == 0) p.y_stride = p.n;
  KT_CHECK(p.x_stride % 8 == 0 && p.x_step % 8 == 0 && p.w_step % 8 == 0, "rows of x ", p.x_stride,
           " apart, products ", p.x_step, " and ", p.w_step, ": must be multiples of 8");
  KT_CHECK(p.y_stride % 2 == 0 && p.y_step % 2 == 0, "rows of y ", p.y_stride,
           " apart, products ", p.y_step, ": must be even");
  KT_CHECK(!p.has_runs || p.products <= DenseGemmParams::kMostRuns, p.products, " runs, at most ",
           DenseGemmParams::kMostRuns);
  KT_CHECK(!p.scales || p.float_out, "factors of rows, for a result that is not float");
  const LaunchShape shape{.grid_x = unsigned(div_up(p.m, 128)),
                          .grid_y = unsigned(div_up(p.n, 128)),
                          .grid_z = unsigned(p.products),
                          .threads = 256,
                          .shared_bytes = DenseGemm<half_t>::kSharedBytes};
  if (p.bf16) return launch<DenseGemm<bf16_t>>(shape, p, p.stream);
  launch<DenseGemm<half_t>>(shape, p, p.stream);
}

}  // namespace kt::cuda
