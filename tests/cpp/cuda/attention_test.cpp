// Attention, emulated, against softmax in double: grouped-query, latent (absorbed) and 192/128,
// with several sequences, ragged lengths, prompts and decodes, splits, and an FP8 cache.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "base/error.h"
#include "buffer.h"
#include "cuda/attention/flash.h"
#include "cuda/common/device.h"

namespace kt::cuda {
namespace {

struct Shape {
  int heads, kv_heads, qk, v;
  bool latent;
  std::vector<int> tokens, lengths;  // per sequence
  int splits;                        // 0: as chosen
  int sms, arch;
};

template <class T, class Cache>
void check(const Shape& s) {
  SCOPED_TRACE(concat(s.heads, " heads, ", s.kv_heads, " key heads, ", s.qk, "/", s.v, " splits ",
                      s.splits, " arch ", s.arch));
  emulated::options().arch = s.arch;
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  const int sequences = int(s.tokens.size());
  const int longest = *std::max_element(s.lengths.begin(), s.lengths.end());
  const int max_pages = div_up(longest, kPagePositions) + 1;
  // Pages of the sequences are dealt out in a mixed order.
  std::vector<int32_t> pages(size_t(sequences) * max_pages), first_token { 0 };
  for (size_t i = 0; i < pages.size(); ++i) pages[i] = int32_t(i);
  std::shuffle(pages.begin(), pages.end(), random);
  for (int t : s.tokens) first_token.push_back(first_token.back() + t);
  const int total = first_token.back();
  const auto fill = [&](auto& values, float size) {
    using E = typename std::remove_reference_t<decltype(values)>::value_type;
    for (E& x : values) x = from_float<E>(normal(random) * size);
  };
  std::vector<T> q(size_t(total) * s.heads * s.qk);
  // Rows of FP8 have a power of two each. Rotated keys are T's: beside FP8 latents, or all of them.
  constexpr bool kFp8 = sizeof(Cache) == 1;
  const size_t places = pages.size() * kPagePositions * s.kv_heads;
  const int k_width = !kFp8 ? s.qk : s.latent ? s.v : 0;
  std::vector<Cache> k(places * k_width), v;
  std::vector<T> rope(places * (s.qk - k_width));
  fill(q, 1.0f);
  fill(k, kFp8 ? 16.0f : 2.0f);
  fill(rope, 2.0f);
  if (!s.latent) {
    v.resize(places * s.v);
    fill(v, 1.0f);
  }
  std::vector<uint8_t> k_exponents(kFp8 ? places : 0), v_exponents(v.empty() ? 0 : places);
  for (uint8_t& e : k_exponents) e = uint8_t(127 - 4 + random() % 3);
  for (uint8_t& e : v_exponents) e = kFp8 ? uint8_t(127 - 9 + random() % 12) : 127;
  const auto times = [](float value, uint8_t exponent) {
    return std::ldexp(value, exponent - 127);
  };
  const auto key = [&](size_t at, int d) {
    if (d >= k_width) return to_float(rope[at * (s.qk - k_width) + d - k_width]);
    const float value = to_float(k[at * k_width + d]);
    return kFp8 ? times(value, k_exponents[at]) : value;
  };
  const auto value = [&](size_t at, int c) {
    return s.latent ? key(at, c) : times(to_float(v[at * s.v + c]), v_exponents[at]);
  };
  Buffer<T> qb(q), out(size_t(total) * s.heads * s.v);
  Buffer<Cache> kb(k), vb(v);
  Buffer<T> rb(rope);
  Buffer<uint8_t> ke(k_exponents), ve(v_exponents);
  Buffer<int32_t> first(first_token), pages_b(pages),
      lengths(std::vector<int32_t>(s.lengths.begin(), s.lengths.end()));
  FlashParams p{};
  p.q = qb.data(), p.k = kb.data(), p.v = s.latent ? nullptr : vb.data(), p.out = out.data();
  p.first_token = first.data(), p.kv_length = lengths.data(), p.pages = pages_b.data();
  p.sequences = sequences, p.max_tokens = *std::max_element(s.tokens.begin(), s.tokens.end());
  p.total_tokens = total, p.heads = s.heads, p.kv_heads = s.kv_heads, p.qk_dim = s.qk;
  p.v_dim = s.v, p.max_pages = max_pages, p.scale = 1.0f / std::sqrt(float(s.qk));
  if (kFp8 && s.latent) p.k_exponents = ke.data(), p.k_rope = rb.data();
  if (kFp8 && !s.latent) p.k = rb.data(), p.v_exponents = ve.data();
  p.type = std::is_same_v<T, bf16_t> ? AttentionType::kBf16 : AttentionType::kF16;
  p.cache = kFp8 ? CacheType::kFp8 : CacheType::kSame;
  FlashTile tile = choose_flash_tile(p, longest, s.sms, s.arch);
  if (s.splits) tile.splits = s.splits;
  Buffer<float> partial(flash_workspace_bytes(p, tile) / 4);
  p.partial = partial.data();
  launch_flash(p, tile);

  const std::vector<T> got = out.values();
  double squared = 0, whole = 0;
  const int group = s.heads / s.kv_heads;
  for (int sequence = 0; sequence < sequences; ++sequence) {
    for (int token = 0; token < s.tokens[sequence]; ++token) {
      const int seen = s.lengths[sequence] - s.tokens[sequence] + token + 1;
      for (int head = 0; head < s.heads; ++head) {
        const size_t row = size_t(first_token[sequence] + token) * s.heads + head;
        std::vector<double> weight(seen);
        double top = -INFINITY, sum = 0;
        const auto at = [&](int position) {
          const int page = pages[sequence * max_pages + position / kPagePositions];
          return (size_t(page) * kPagePositions + position % kPagePositions) * s.kv_heads +
                 head / group;
        };
        for (int i = 0; i < seen; ++i) {
          double dot = 0;
          for (int d = 0; d < s.qk; ++d)
            dot += double(to_float(q[row * s.qk + d])) * key(at(i), d);
          weight[i] = dot * p.scale;
          top = std::max(top, weight[i]);
        }
        for (double& w : weight) sum += w = std::exp(w - top);
        for (int c = 0; c < s.v; ++c) {
          double expected = 0;
          for (int i = 0; i < seen; ++i)
            expected += weight[i] / sum * value(at(i), c);
          const double d = to_float(got[row * s.v + c]) - expected;
          squared += d * d;
          whole += expected * expected;
        }
      }
    }
  }
  EXPECT_LT(squared / whole, p.type == AttentionType::kBf16 ? 2e-5 : 5e-7);
  emulated::options() = {};
}

TEST(Flash, GroupedQuery) {
  check<half_t, half_t>({8, 2, 64, 64, false, {1, 1, 1}, {1, 70, 200}, 0, 4, 90});
  check<half_t, half_t>({4, 2, 128, 128, false, {5, 1}, {5, 130}, 3, 4, 90});  // splits, some empty
  check<bf16_t, bf16_t>({2, 2, 128, 128, false, {67}, {100}, 0, 4, 90});       // a prompt behind 33
  check<half_t, half_t>({4, 1, 64, 64, false, {40, 3}, {40, 90}, 0, 4, 75});
  check<half_t, half_t>({4, 2, 128, 128, false, {5, 1}, {5, 130}, 0, 4, 75});  // one stage
  check<half_t, half_t>({4, 1, 128, 128, false, {17}, {150}, 2, 4, 75});       // 64 rows at a time
  check<half_t, half_t>({4, 4, 96, 64, false, {3}, {80}, 0, 4, 75});
  check<half_t, half_t>({4, 4, 96, 64, false, {3}, {80}, 0, 4, 90});
}

TEST(Flash, AbsorbedLatent) {
  check<bf16_t, bf16_t>({16, 1, 576, 512, true, {1}, {300}, 0, 4, 90});
  check<half_t, half_t>({20, 1, 576, 512, true, {1, 2}, {65, 130}, 2, 4, 86});
  check<half_t, half_t>({16, 1, 576, 512, true, {1}, {100}, 0, 2, 75});
  check<bf16_t, bf16_t>({128, 1, 576, 512, true, {1}, {90}, 0, 2, 90});
  check<half_t, half_t>({4, 1, 288, 256, true, {3, 1}, {3, 77}, 0, 2, 90});
  check<half_t, half_t>({4, 1, 288, 256, true, {3, 1}, {3, 77}, 0, 2, 75});
}

TEST(Flash, ExpandedLatent) {
  check<bf16_t, bf16_t>({2, 2, 192, 128, false, {50}, {50}, 0, 2, 90});
  check<half_t, half_t>({2, 2, 192, 128, false, {3}, {3}, 0, 2, 90});
  check<half_t, half_t>({2, 2, 192, 128, false, {50}, {50}, 0, 2, 75});
}

TEST(Flash, Fp8Cache) {
  check<bf16_t, fp8_t>({16, 1, 576, 512, true, {1}, {150}, 0, 4, 90});
  check<half_t, fp8_t>({4, 2, 128, 128, false, {1, 2}, {64, 65}, 2, 4, 90});
  check<half_t, fp8_t>({6, 2, 64, 64, false, {3, 1, 40}, {3, 129, 61}, 0, 4, 90});
  check<half_t, fp8_t>({4, 1, 288, 256, true, {2, 1}, {130, 1}, 2, 2, 90});
  check<half_t, fp8_t>({16, 1, 576, 512, true, {1}, {70}, 0, 2, 75});  // no conversion in hardware
  check<half_t, fp8_t>({4, 2, 128, 128, false, {1, 30}, {64, 65}, 0, 4, 75});
  FlashParams p{};
  p.qk_dim = p.v_dim = 64, p.cache = CacheType::kFp8;
  EXPECT_THROW(launch_flash(p, {}), InvalidArgument);
}

TEST(Flash, EveryOrderOfThreadsIsRight) {
  for (const auto order : {emulated::Order::kReverse, emulated::Order::kShuffled}) {
    emulated::options().order = order;
    check<half_t, half_t>({4, 2, 64, 64, false, {2}, {140}, 2, 4, 90});
  }
}

TEST(Flash, SplitsFillTheCardAndStayWorthwhile) {
  FlashParams p{};
  p.v = nullptr;
  for (const int arch : {75, 80, 86, 90, 120}) {
    for (const int sms : {28, 82, 108, 132, 170}) {
      for (const int heads : {16, 64, 128}) {
        for (const int sequences : {1, 2, 4, 8, 16}) {
          for (const int length : {1, 64, 300, 4096, 32768, 131072}) {
            p.sequences = p.total_tokens = sequences, p.max_tokens = 1, p.heads = heads;
            p.kv_heads = 1, p.qk_dim = 576, p.v_dim = 512, p.max_pages = 4096;
            const FlashTile tile = choose_flash_tile(p, length, sms, arch);
            const int blocks = div_up(heads, tile.rows) * sequences;
            ASSERT_GE(tile.splits, 1);
            ASSERT_LE(blocks * tile.splits, std::max(sms, blocks));
            if (length >= 32768 && blocks < sms) {
              ASSERT_GT(blocks * tile.splits, sms / 2 - blocks);
            }
            if (tile.splits > 1) {
              ASSERT_GE(length / tile.splits, 4 * tile.positions);
            }
          }
        }
      }
    }
  }
  p.qk_dim = 100;
  EXPECT_THROW(choose_flash_tile(p, 64, 4, 90), Unsupported);
  p.kv_heads = 3;
  EXPECT_THROW(choose_flash_tile(p, 64, 4, 90), InvalidArgument);
}

}  // namespace
}  // namespace kt::cuda
