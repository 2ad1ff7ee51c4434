// Many rows by expert: a block per expert counts its assignments, another launch puts each in its
// place. Everyone reads all numbers of experts, out of L2; the order is that of experts and tokens,
// always. And what the products of some of them give, added to the tokens that chose these.
#include "base/error.h"
#include "cuda/layer/block_reduce.h"
#include "cuda/moe/moe.h"

namespace kt::cuda {

namespace {

constexpr int kSortThreads = 256;

struct CountKernel {
  using Params = SortParams;
  static constexpr int kThreads = kSortThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr unsigned kSharedBytes = kThreads / 32 * 4;
  KT_DEVICE static void run(const Params& p) {
    const int expert = block_x();
    const Global<const int32_t> ids(p.ids);
    int count = 0;
    for (int a = thread_id(); a < p.m * p.top_k; a += kThreads) count += int{ids[a]} == expert;
    // Exact in float: fewer than 2^24.
    const float total = block_sum(static_cast<float>(count), shared_at<float>(0));
    if (thread_id() != 0) return;
    Global<int32_t>(p.counts)[expert] = static_cast<int>(total);
    Global<int32_t>(p.host_counts)[expert] = static_cast<int>(total);
  }
};

struct PlaceKernel {
  using Params = SortParams;
  static constexpr int kThreads = kSortThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr unsigned kSharedBytes = kThreads / 32 * 4;
  KT_DEVICE static void run(const Params& p) {
    const int expert = block_x(), assignments = p.m * p.top_k;
    const Global<const int32_t> ids(p.ids), counts(p.counts);
    int before = 0;
    for (int e = thread_id(); e < expert; e += kThreads) before += int{counts[e]};
    int place = static_cast<int>(block_sum(static_cast<float>(before), shared_at<float>(0)));
    const Shared<uint32_t> found = shared_at<uint32_t>(0);  // of every warp
    for (int first = 0; first < assignments; first += kThreads) {
      const int a = first + thread_id();
      const bool mine = a < assignments && int{ids[a < assignments ? a : 0]} == expert;
      const uint32_t bits = ballot(mine);
      sync();  // the last round's counts were read
      if (lane_id() == 0) found[warp_id()] = count_bits(bits);
      sync();
      int at = place + count_bits(bits & ((1u << lane_id()) - 1));
      for (unsigned w = 0; w < kThreads / 32; ++w) {
        const int others = uint32_t{found[w]};
        if (w < warp_id()) at += others;
        place += others;
      }
      if (!mine) continue;
      Global<int32_t>(p.source)[at] = a / p.top_k;
      Global<int32_t>(p.place)[a] = at;
    }
  }
};

struct CombineRunsKernel {
  using Params = CombineRunsParams;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  /// The row of y with a place, -1: none.
  KT_DEVICE static int row_of(const Params& p, int place) {
    int row = -1;
    for (int i = 0; i < p.num_runs; ++i) {
      const int in_run = place - p.runs[i].first;
      if (in_run >= 0 && in_run < p.runs[i].rows) row = p.runs[i].out + in_run;
    }
    return row;
  }
  KT_DEVICE static void run(const Params& p) {
    const int64_t token = block_x();
    const Global<const int32_t> places = Global<const int32_t>(p.place) + token * p.top_k;
    const Global<const float> weights = Global<const float>(p.weights) + token * p.top_k;
    // Which of the token's assignments are here: most tokens have none.
    uint32_t here = 0;
    for (int k = 0; k < p.top_k; ++k)
      if (row_of(p, places[k]) >= 0) here |= 1u << k;
    if (here == 0) return;
    for (int column = thread_id(); column < p.n; column += kThreads) {
      const Global<float> out = Global<float>(p.out) + token * p.n;
      float sum = out[column];
      for (int k = 0; k < p.top_k; ++k) {
        if (!(here >> k & 1)) continue;
        const int64_t row = row_of(p, places[k]);
        const float weight = weights[k];
        sum = fma(weight, Global<const float>(p.y)[row * p.n + column], sum);
      }
      out[column] = sum;
    }
  }
};

}  // namespace

void launch_sort(const SortParams& p) {
  KT_CHECK(p.m > 0 && p.top_k > 0 && p.experts > 0 && p.experts <= kMaxExperts, p.m, " rows, ",
           p.top_k, " of ", p.experts, " experts; 1 to ", kMaxExperts);
  KT_CHECK(int64_t{p.m} * p.top_k < 1 << 24, int64_t{p.m} * p.top_k,
           " assignments are too many for one launch");
  const LaunchShape shape{.grid_x = unsigned(p.experts),
                          .threads = kSortThreads,
                          .shared_bytes = CountKernel::kSharedBytes};
  launch<CountKernel>(shape, p, p.stream);
  launch<PlaceKernel>(shape, p, p.stream);
}

void launch_combine_runs(const CombineRunsParams& p) {
  KT_CHECK(p.m > 0 && p.n > 0 && p.top_k > 0 && p.top_k <= 32, "combination of ", p.m, " x ", p.n,
           ", ", p.top_k, " experts each; at most 32");
  KT_CHECK(p.num_runs > 0 && p.num_runs <= DenseGemmParams::kMostRuns, p.num_runs, " runs");
  launch<CombineRunsKernel>({.grid_x = unsigned(p.m), .threads = 256}, p, p.stream);
}

}  // namespace kt::cuda
