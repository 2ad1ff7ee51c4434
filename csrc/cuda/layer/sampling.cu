// Sampling: a block per row of logits, which stays in L2 while it is read about a dozen times.
//
// The next token is defined by the CPU's Sampler: with top-k or top-p the candidates are in order
// of their logits, of equals the lower token first; what top-k, top-p and min-p keep are beginnings
// of this order; the draw goes along it. With neither, the draw goes along the tokens' numbers.
//
// No row is sorted. A logit becomes a 32-bit key in the order of floats, and
//
//   find_key    the largest key such that what is at least as large sums up to an amount
//   find_token  the first token such that those up to it sum up to an amount
//
// answer everything: the edges of top-k (amounts of one) and top-p (probabilities), the logit that
// is drawn, and which of several equal ones. Amounts are whole numbers, probabilities in units of
// 2^-40 of the largest (2^24 tokens stay below 2^64), so that no sum depends on its order.
#include "base/error.h"
#include "cuda/layer/block_reduce.h"
#include "cuda/layer/layer.h"

namespace kt::cuda {

namespace {

constexpr int kThreads = 512;
constexpr int kBins = 2048;    // of a digit of a key
constexpr int kChunks = 1024;  // of a row, when it is searched in order of tokens
constexpr uint64_t kOne = uint64_t{1} << 40;

/// Floats in the order of unsigned integers, equal ones (0 and -0) alike; NaN: 0, below all others.
KT_DEVICE uint32_t key_of(float v) {
  if (v != v) return 0;
  const uint32_t bits = bits_of(v + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
KT_DEVICE float logit_of(uint32_t key) {
  return float_of(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key);
}

struct Row {
  Global<const float> logits;
  int vocab;
  float top, temperature, min_p;
  /// A token's probability in units of 2^-40 of the largest; 0 for what min-p leaves out.
  KT_DEVICE uint64_t mass(float logit) const {
    if (logit == top) return kOne;  // also where both are infinite
    if (logit != logit) return 0;
    const float p = exp2_fast((logit - top) / temperature * 1.44269504f);
    return p >= min_p ? static_cast<uint64_t>(p * static_cast<float>(kOne)) : 0;
  }
};

enum class Amount { kTokens, kMass, kEqual };

template <Amount kAmount>
KT_DEVICE uint64_t amount_of(const Row& row, float logit, uint32_t equal) {
  if constexpr (kAmount == Amount::kTokens) return logit == logit ? 1 : 0;
  if constexpr (kAmount == Amount::kEqual) return key_of(logit) == equal ? 1 : 0;
  return row.mass(logit);
}

/// The block's shared memory.
struct Room {
  Shared<uint64_t> bins;   // [kBins]
  Shared<uint64_t> warps;  // [kThreads / 32]
  Shared<uint64_t> found;  // [2]: a place, and the sum before it
};

KT_DEVICE uint64_t warp_scan(uint64_t value) {
  for (unsigned delta = 1; delta < 32; delta *= 2) {
    const uint64_t below = shuffle_up(value, delta);
    if (lane_id() >= delta) value += below;
  }
  return value;
}

struct Found {
  uint32_t place;
  uint64_t before;
};

/// The first of `count` places (a multiple of kThreads) whose sum with `before` and all places
/// before it reaches `wanted`; backwards: from the last bin on. Some place does.
KT_DEVICE Found locate(const Room& room, int count, bool backwards, uint64_t before,
                       uint64_t wanted) {
  const int each = count / kThreads, first = static_cast<int>(thread_id()) * each;
  uint64_t own = 0;
  for (int i = first; i < first + each; ++i) {
    const uint64_t bin = room.bins[backwards ? count - 1 - i : i];
    own += bin;
  }
  const uint64_t scan = warp_scan(own);
  if (lane_id() == 31) room.warps[warp_id()] = scan;
  sync();
  uint64_t sum = before + scan - own;
  for (unsigned w = 0; w < warp_id(); ++w) {
    const uint64_t of_warp = room.warps[w];
    sum += of_warp;
  }
  if (sum < wanted && sum + own >= wanted) {
    for (int i = first;; ++i) {
      const uint64_t bin = room.bins[backwards ? count - 1 - i : i];
      if (sum + bin >= wanted) {
        room.found[0] = static_cast<uint64_t>(i), room.found[1] = sum;
        break;
      }
      sum += bin;
    }
  }
  sync();
  const uint64_t place = room.found[0], sum_before = room.found[1];
  sync();  // bins and results are read: the next one may write
  return {static_cast<uint32_t>(place), sum_before};
}

struct FoundKey {
  uint32_t key;
  uint64_t above;  // amount of what is larger
};

/// The largest key whose logits and all larger ones amount to `wanted` at least, three digits one
/// after another. All together do.
template <Amount kAmount>
KT_DEVICE FoundKey find_key(const Row& row, const Room& room, uint64_t wanted) {
  FoundKey found{0, 0};
  for (int level = 0; level < 3; ++level) {
    const int shift = level == 0 ? 21 : level == 1 ? 10 : 0, bits = level == 2 ? 10 : 11;
    for (int i = thread_id(); i < kBins; i += kThreads) room.bins[i] = 0;
    sync();
    for (int i = thread_id(); i < row.vocab; i += kThreads) {
      const float logit = row.logits[i];
      const uint32_t key = key_of(logit);
      if (level > 0 && key >> (shift + bits) != found.key) continue;
      const uint64_t amount = amount_of<kAmount>(row, logit, 0);
      if (amount) atomic_add(room.bins + ((key >> shift) & ((1u << bits) - 1)), amount);
    }
    sync();
    const Found digit = locate(room, kBins, true, found.above, wanted);
    found = {found.key << bits | (kBins - 1 - digit.place), digit.before};
  }
  return found;
}

/// The first token with which the amounts in order of tokens exceed `at`. All together do.
template <Amount kAmount>
KT_DEVICE int find_token(const Row& row, const Room& room, uint64_t at, uint32_t equal = 0) {
  const int chunk = round_up(div_up(row.vocab, kChunks), 32);
  for (int c = warp_id(); c < kChunks; c += kThreads / 32) {
    const int end = min((c + 1) * chunk, row.vocab);
    uint64_t sum = 0;
    for (int i = c * chunk + static_cast<int>(lane_id()); i < end; i += 32)
      sum += amount_of<kAmount>(row, row.logits[i], equal);
    for (unsigned mask = 16; mask; mask /= 2) sum += shuffle_xor(sum, mask);
    if (lane_id() == 0) room.bins[c] = sum;
  }
  sync();
  const Found place = locate(room, kChunks, false, 0, at + 1);
  if (warp_id() == 0) {
    uint64_t before = place.before;
    const int begin = static_cast<int>(place.place) * chunk;
    for (int i = begin; i < begin + chunk; i += 32) {
      const int token = i + static_cast<int>(lane_id());
      uint64_t amount = 0;
      if (token < row.vocab) amount = amount_of<kAmount>(row, row.logits[token], equal);
      const uint64_t sum = before + warp_scan(amount);
      const uint32_t beyond = ballot(sum > at);
      if (beyond) {
        const int lane = count_bits((beyond & (~beyond + 1)) - 1);  // the lowest that is set
        if (lane_id() == 0) room.found[0] = static_cast<uint64_t>(i + lane);
        break;
      }
      before = shuffle(sum, 31u);
    }
  }
  sync();
  const uint64_t token = room.found[0];
  sync();
  return static_cast<int>(token);
}

/// Mass of everything above a key; 0: of all.
KT_DEVICE uint64_t mass_above(const Row& row, const Room& room, uint32_t key) {
  uint64_t sum = 0;
  for (int i = thread_id(); i < row.vocab; i += kThreads) {
    const float logit = row.logits[i];
    if (key_of(logit) > key) sum += row.mass(logit);
  }
  for (unsigned mask = 16; mask; mask /= 2) sum += shuffle_xor(sum, mask);
  if (lane_id() == 0) room.warps[warp_id()] = sum;
  sync();
  uint64_t total = 0;
  for (unsigned w = 0; w < kThreads / 32; ++w) {
    const uint64_t of_warp = room.warps[w];
    total += of_warp;
  }
  sync();
  return total;
}

struct SampleKernel {
  using Params = SampleParams;
  static constexpr int kThreads = cuda::kThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr unsigned kSharedBytes = (kBins + kThreads / 32 + 2) * 8;

  KT_DEVICE static void run(const Params& p) {
    const kt_cuda_sampling how = Global<const kt_cuda_sampling>(p.how)[block_x()];
    const Room room{shared_at<uint64_t>(0), shared_at<uint64_t>(kBins * 8),
                    shared_at<uint64_t>((kBins + kThreads / 32) * 8)};
    Row row{Global<const float>(p.logits) + static_cast<int64_t>(block_x()) * p.vocab, p.vocab,
            -infinity(), how.temperature, 0};
    float is_number = 0;
    for (int i = thread_id(); i < p.vocab; i += kThreads) {
      const float logit = row.logits[i];
      row.top = max(row.top, logit);
      if (logit == logit) is_number = 1;
    }
    const Shared<float> scratch = shared_cast<float>(room.warps);
    row.top = block_max(row.top, scratch);
    is_number = block_max(is_number, scratch);
    sync();
    int token = -1;
    if (is_number > 0) {
      token = how.greedy ? find_token<Amount::kEqual>(row, room, 0, key_of(row.top))
                         : draw(row, room, how);
    }
    if (thread_id() == 0) Global<int32_t>(p.token)[block_x()] = token;
  }

  KT_DEVICE static int draw(Row& row, const Room& room, const kt_cuda_sampling& how) {
    if (how.top_k <= 0 && how.top_p >= 1.0f) {
      row.min_p = how.min_p;
      const uint64_t all = mass_above(row, room, 0);
      return find_token<Amount::kMass>(row, room, multiply_high(how.random, all));
    }
    uint64_t kept = mass_above(row, room, 0);
    if (how.top_k > 0 && how.top_k < row.vocab) kept = top_k(row, room, how.top_k, kept);
    if (how.top_p < 1.0f) kept = top_p(row, room, how.top_p, kept);
    if (how.min_p > 0) {
      row.min_p = how.min_p;
      const uint64_t likely = mass_above(row, room, 0);  // a beginning of the order, too
      kept = likely < kept ? likely : kept;
    }
    const uint64_t at = multiply_high(how.random, kept);
    const FoundKey drawn = find_key<Amount::kMass>(row, room, at + 1);
    const uint64_t which = (at - drawn.above) / row.mass(logit_of(drawn.key));
    return find_token<Amount::kEqual>(row, room, which, drawn.key);
  }

  /// Mass of the k best of all.
  KT_DEVICE static uint64_t top_k(const Row& row, const Room& room, int k, uint64_t all) {
    // NaNs may leave fewer.
    float numbers = 0;
    for (int i = thread_id(); i < row.vocab; i += kThreads) {
      const float logit = row.logits[i];
      if (logit == logit) numbers += 1.0f;
    }
    numbers = block_sum(numbers, shared_cast<float>(room.warps));
    sync();
    if (numbers <= static_cast<float>(k)) return all;
    const auto wanted = static_cast<uint64_t>(k);
    const FoundKey edge = find_key<Amount::kTokens>(row, room, wanted);
    return mass_above(row, room, edge.key) + (wanted - edge.above) * row.mass(logit_of(edge.key));
  }

  /// Mass of the shortest beginning with a share of `all`.
  KT_DEVICE static uint64_t top_p(const Row& row, const Room& room, float share, uint64_t all) {
    const auto part = static_cast<uint64_t>(share * 18446744073709551616.0f);  // of 2^64
    uint64_t wanted = multiply_high(part, all) + (part * all != 0 ? 1 : 0);
    if (wanted == 0) wanted = 1;
    const FoundKey edge = find_key<Amount::kMass>(row, room, wanted);
    const uint64_t each = row.mass(logit_of(edge.key));
    return edge.above + (wanted - edge.above + each - 1) / each * each;
  }
};

}  // namespace

void check_sampling(const kt_cuda_sampling& how) {
  if (how.greedy) return;
  KT_CHECK(how.temperature > 0, "temperature=", how.temperature, " must be above 0");
  KT_CHECK(how.top_k >= 0, "top_k=", how.top_k, " must not be negative");
  KT_CHECK(how.top_p > 0 && how.top_p <= 1, "top_p=", how.top_p, " must be in (0, 1]");
  KT_CHECK(how.min_p >= 0 && how.min_p <= 1, "min_p=", how.min_p, " must be in [0, 1]");
}

void launch_sample(const SampleParams& p) {
  KT_CHECK(p.rows > 0 && p.vocab > 0 && p.vocab < 1 << 24, p.rows, " rows of ", p.vocab, " logits");
  launch<SampleKernel>({.grid_x = unsigned(p.rows),
                        .threads = SampleKernel::kThreads,
                        .shared_bytes = SampleKernel::kSharedBytes},
                       p, p.stream);
}

}  // namespace kt::cuda
