// One block, a thread per expert: everyone counts its own assignments in order, a scan over the
// block gives items and tiles their numbers, and everyone writes its own. No atomics: the order is
// that of experts and tokens, always. Then results are added, a block per token.
#include "base/error.h"
#include "cuda/common/device.h"
#include "cuda/moe/moe.h"

namespace kt::cuda {

namespace {

struct RouteKernel {
  using Params = RouteParams;
  static constexpr int kThreads = kMaxExperts;
  static constexpr int kMinBlocks = 1;
  static constexpr unsigned kSharedBytes = kMaxExperts / 32 * 4;

  KT_DEVICE static void run(const Params& p) {
    const int expert = thread_id(), assignments = p.m * p.top_k;
    const Global<const int32_t> ids(p.ids);
    ExpertSlot slot{};
    if (expert < p.experts) slot = Global<const ExpertSlot>(p.slots)[expert];
    const bool resident = slot.down != nullptr;
    for (int i = thread_id(); i < p.max_tiles * 8; i += kThreads) Global<int32_t>(p.source)[i] = -1;
    int count = 0;
    if (expert < p.experts)
      for (int a = 0; a < assignments; ++a) count += int{ids[a]} == expert;
    const bool used = count > 0 && resident;
    const int tiles = used ? div_up(count, 8) : 0;
    const int items = div_up(tiles, p.item_tiles);
    // Inclusive scan of (items, tiles) in one word: tiles in the low half.
    const Shared<uint32_t> warps = shared_at<uint32_t>(0);
    uint32_t scan = static_cast<uint32_t>(items) << 16 | tiles;
    for (unsigned delta = 1; delta < 32; delta *= 2) {
      const uint32_t below = shuffle_up(scan, delta);
      if (lane_id() >= delta) scan += below;
    }
    if (lane_id() == 31) warps[warp_id()] = scan;
    sync();  // also orders the -1 of source before the tokens below
    uint32_t before = 0, all = 0;
    for (unsigned w = 0; w < block_threads() / 32; ++w) {
      const uint32_t v = warps[w];
      if (w < warp_id()) before += v;
      all += v;
    }
    scan += before;
    if (thread_id() == 0) Global<int32_t>(p.num_items)[0] = all >> 16;
    if (expert >= p.experts || count == 0) return;
    const int first_tile = static_cast<int>(scan & 0xFFFF) - tiles;
    if (used) {
      const int first_item = static_cast<int>(scan >> 16) - items;
      for (int i = 0; i < items; ++i) {
        const int begin = first_tile + i * p.item_tiles, item = first_item + i;
        const int own = min(p.item_tiles, tiles - i * p.item_tiles);
        Global<GemvItem>(p.gate_items)[item] = {slot.gate, nullptr, begin, own};
        Global<GemvItem>(p.up_items)[item] = {slot.up, nullptr, begin, own};
        Global<GemvItem>(p.down_items)[item] = {slot.down, nullptr, begin, own};
      }
    }
    int place = first_tile * 8;
    for (int a = 0; a < assignments; ++a) {
      if (int{ids[a]} != expert) continue;
      if (used) Global<int32_t>(p.source)[place] = a / p.top_k;
      Global<int32_t>(p.place)[a] = used ? place++ : -1;
      Global<int32_t>(p.cpu_ids)[a] = used ? -1 : expert;
    }
  }
};

struct CombineKernel {
  using Params = CombineParams;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  KT_DEVICE static void run(const Params& p) {
    const int column = block_y() * kThreads + thread_id();
    if (column >= p.n) return;
    const int64_t token = block_x(), at = token * p.n + column;
    float sum = 0;
    for (int k = 0; k < p.top_k; ++k) {
      const int place = Global<const int32_t>(p.place)[token * p.top_k + k];
      if (place < 0) continue;
      const float weight = Global<const float>(p.weights)[token * p.top_k + k];
      sum = fma(weight, Global<const float>(p.y)[static_cast<int64_t>(place) * p.n + column], sum);
    }
    if (p.shared) {
      const float factor =
          p.gate ? 1.0f / (1.0f + exp_fast(-Global<const float>(p.gate)[token])) : 1.0f;
      sum = fma(factor, Global<const float>(p.shared)[at], sum);
    }
    if (p.cpu) sum += Global<const float>(p.cpu)[at];
    if (p.deferred) sum += Global<const float>(p.deferred)[at];
    Global<float>(p.out)[at] = sum;
  }
};

}  // namespace

void launch_route(const RouteParams& p) {
  KT_CHECK(p.m > 0 && p.top_k > 0, "no assignments");
  KT_CHECK(p.experts > 0 && p.experts <= kMaxExperts, p.experts, " experts; 1 to ", kMaxExperts);
  KT_CHECK(p.max_tiles >= moe_max_tiles(p.m, p.experts, p.top_k), "room for ", p.max_tiles,
           " tiles, ", moe_max_tiles(p.m, p.experts, p.top_k), " may be needed");
  KT_CHECK(p.item_tiles > 0, "items of ", p.item_tiles, " tiles");
  KT_CHECK(p.max_tiles < 1 << 16, p.max_tiles, " tiles are too many for one launch");
  launch<RouteKernel>({.threads = RouteKernel::kThreads, .shared_bytes = RouteKernel::kSharedBytes},
                      p, p.stream);
}

void launch_combine(const CombineParams& p) {
  KT_CHECK(p.m > 0 && p.n > 0 && p.top_k >= 0, "combination of ", p.m, " x ", p.n);
  launch<CombineKernel>(
      {.grid_x = unsigned(p.m), .grid_y = unsigned(div_up(p.n, 256)), .threads = 256}, p, p.stream);
}

}  // namespace kt::cuda
