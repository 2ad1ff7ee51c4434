// The small kernels of a layer, emulated, against plain double arithmetic or the CPU's own
// operator.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "base/error.h"
#include "buffer.h"
#include "values.h"
#include "cpu/ops/attention.h"
#include "cpu/ops/context.h"
#include "cpu/ops/ffn.h"
#include "cuda/common/device.h"
#include "cuda/gemm/dense_gemm.h"
#include "cuda/layer/layer.h"
#include "cuda/moe/moe.h"
#include "program/sampling.h"
#include "quant/list.h"

namespace kt::cuda {
namespace {

TEST(Layer, RmsNormAddsAndNorms) {
  const int m = 3, k = 518;
  const std::vector<float> hidden = gaussian(m * k, 1), delta = gaussian(m * k, 2),
                           weight = gaussian(k, 3);
  Buffer<float> h(hidden), d(delta), w(weight), out(m * k);
  Buffer<bf16_t> out16(m * k);
  launch_rms_norm(
      {h.data(), d.data(), w.data(), out.data(), out16.data(), m, k, 1e-6f, Out16::kBf16, {}});
  for (int row = 0; row < m; ++row) {
    double squares = 0;
    for (int i = 0; i < k; ++i)
      squares += std::pow(double(hidden[row * k + i]) + delta[row * k + i], 2);
    const double factor = 1 / std::sqrt(squares / k + 1e-6);
    for (int i = 0; i < k; ++i) {
      const int at = row * k + i;
      const double x = double(hidden[at]) + delta[at], y = x * factor * weight[i];
      EXPECT_NEAR(h.values()[at], x, 1e-6);
      ASSERT_NEAR(out.values()[at], y, 1e-5);
      ASSERT_NEAR(to_float(out16.values()[at]), y, std::fabs(y) * 0x1p-8 + 1e-6);
      if (i > 40) i += 37;  // values() copies: enough of them
    }
  }
}

TEST(Layer, Swiglu) {
  const std::vector<float> gate = gaussian(600, 4, 3), up = gaussian(600, 5);
  Buffer<float> g(gate), u(up);
  Buffer<half_t> out(600);
  launch_swiglu({g.data(), u.data(), out.data(), 600, Out16::kF16, {}});
  const auto got = out.values();
  for (int i = 0; i < 600; ++i) {
    const double y = gate[i] / (1 + std::exp(-double(gate[i]))) * up[i];
    ASSERT_NEAR(to_float(got[i]), y, std::fabs(y) * 0x1p-10 + 1e-6);
  }
}

TEST(Layer, PrepareActivatesGathersAndStrides) {
  const int k = 64, stride = 70;
  const std::vector<float> gate = gaussian(3 * stride, 6), up = gaussian(3 * stride, 7);
  Buffer<float> g(gate), u(up), sums(prepared_sums(1, k)), scales(8);
  Buffer<half_t> fragments(prepared_fragments(1, k));
  Buffer<int32_t> source(std::vector<int32_t>{2, -1, 0, 0, 1, -1, -1, -1});
  launch_prepare({g.data(),
                  u.data(),
                  stride,
                  source.data(),
                  {fragments.data(), sums.data(), scales.data()},
                  3,
                  k,
                  1,
                  0,
                  {}});
  const auto f = fragments.values();
  for (int slot = 0; slot < 8; ++slot) {
    const int row = source.values()[slot];
    double run_sum = 0;
    for (int i = 0; i < k; ++i) {
      const int at = (i / 16 * 32 + slot * 4 + i % 16 / 4) * 4 + i % 4;
      const double scale = scales.values()[slot], value = to_float(f[at]) * scale;
      if (row < 0) {
        ASSERT_EQ(to_float(f[at]), 0.0f);
        continue;
      }
      const double x = gate[row * stride + i];
      const double expected = x / (1 + std::exp(-x)) * up[row * stride + i];
      ASSERT_NEAR(value, expected, scale * 0x1p-10);
      run_sum += expected / scale;
      if (i % 16 == 15) {
        ASSERT_NEAR(sums.values()[i / 16 * 8 + slot], run_sum, 1e-4);
        run_sum = 0;
      }
    }
  }
}

TEST(Layer, RotateAgreesWithTheCpu) {
  for (const bool interleaved : {false, true}) {
    const int tokens = 3, heads = 5, dim = 96, begin = 64, rope_dim = 32, stride = 100;
    const std::vector<float> x = gaussian(tokens * heads * stride, 8), weight = gaussian(begin, 9);
    cpu::Rope rope;
    rope.interleaved = interleaved;
    rope.attention_scaling = 1.25f;
    for (int i = 0; i < rope_dim / 2; ++i) rope.inv_freq.push_back(std::pow(100.0f, -i / 16.0f));
    const std::vector<int32_t> position{0, 77, 130}, sequence{1, 0, 1}, pages{4, 1, 2, 3, 0, 5};
    Buffer<float> xb(x), wb(weight), freq(rope.inv_freq);
    Buffer<int32_t> pos(position), seq(sequence), pg(pages);
    Buffer<half_t> dense(tokens * heads * dim), cache(6 * 64 * heads * dim);
    RotateParams p{};
    p.x = xb.data(), p.stride = stride, p.norm_weight = wb.data(), p.norm_dim = begin;
    p.inv_freq = freq.data(), p.position = pos.data(), p.out = dense.data();
    p.tokens = tokens, p.heads = heads, p.dim = dim, p.eps = 1e-5f;
    p.rope_begin = begin, p.rope_dim = rope_dim, p.attention_scaling = 1.25f;
    p.interleaved = interleaved;
    launch_rotate(p);
    p.out = cache.data(), p.pages = pg.data(), p.sequence = seq.data(), p.max_pages = 3;
    launch_rotate(p);
    // A bias counts before everything else: rows without it and a bias that makes them what they
    // were.
    std::vector<float> bias = gaussian(heads * dim, 31), rest = x;
    for (int row = 0; row < tokens * heads; ++row)
      for (int i = 0; i < dim; ++i) rest[row * stride + i] -= bias[row % heads * dim + i];
    Buffer<float> bb(bias), rb(rest);
    Buffer<half_t> sum(tokens * heads * dim);
    p.x = rb.data(), p.bias = bb.data(), p.out = sum.data(), p.pages = nullptr;
    launch_rotate(p);
    const auto with_bias = sum.values();
    const auto got = dense.values();
    for (int token = 0; token < tokens; ++token) {
      float cosines[16], sines[16];
      rope.angles(position[token], cosines, sines);
      for (int head = 0; head < heads; ++head) {
        const float* row = x.data() + (token * heads + head) * stride;
        std::vector<float> expected(row, row + dim);
        double squares = 0;
        for (int i = 0; i < begin; ++i) squares += double(row[i]) * row[i];
        for (int i = 0; i < begin; ++i)
          expected[i] = float(row[i] / std::sqrt(squares / begin + 1e-5) * weight[i]);
        rope.rotate(cosines, sines, expected.data() + begin);
        const int page = pages[sequence[token] * 3 + position[token] / 64];
        for (int i = 0; i < dim; ++i) {
          const half_t v = got[(token * heads + head) * dim + i];
          ASSERT_NEAR(to_float(v), expected[i], std::fabs(expected[i]) * 0x1p-10 + 3e-5);
          ASSERT_NEAR(to_float(with_bias[(token * heads + head) * dim + i]), expected[i],
                      std::fabs(expected[i]) * 0x1p-9 + 3e-5);
          const size_t at = ((size_t(page) * 64 + position[token] % 64) * heads + head) * dim + i;
          ASSERT_TRUE(cache.written(at));
          ASSERT_EQ(cache.data()[at].bits, v.bits);
        }
      }
    }
  }
}

TEST(Layer, RotateTakesTheRotatedPartFromElsewhere) {
  const std::vector<float> latent = gaussian(2 * 32, 10), part = gaussian(2 * 40, 11);
  Buffer<float> a(latent), b(part), freq(std::vector<float>{0.0f, 0.0f});
  Buffer<int32_t> position(std::vector<int32_t>{3, 4});
  Buffer<half_t> out(2 * 36);
  RotateParams p{};
  p.x = a.data(), p.stride = 32, p.second = b.data(), p.second_stride = 40;
  p.inv_freq = freq.data(), p.position = position.data(), p.out = out.data();
  p.tokens = 2, p.heads = 1, p.dim = 36, p.rope_begin = 32, p.rope_dim = 4;
  p.attention_scaling = 1;
  launch_rotate(p);
  const auto got = out.values();
  for (int row = 0; row < 2; ++row)
    for (int i = 0; i < 36; ++i) {
      const float x = i < 32 ? latent[row * 32 + i] : part[row * 40 + i - 32];  // angle 0
      ASSERT_EQ(got[row * 36 + i].bits, from_float<half_t>(x).bits);
    }
}

TEST(Layer, RotateWritesFp8RowsWithTheLeastPowerOfTwoThatHoldsThem) {
  const int tokens = 3, heads = 2, dim = 40, rows = tokens * heads;
  std::vector<float> x = gaussian(rows * dim, 12);
  // Rows of nothing, of the largest value that needs no factor, of a little more, of very little
  // and of too much.
  const float largest[] = {0.0f, 448.0f, 449.0f, 3e-9f, 1e9f, 7.0f};
  for (int row = 0; row < rows; ++row)
    for (int i = 0; i < dim; ++i)
      x[row * dim + i] = i == 17 ? -largest[row] : x[row * dim + i] * largest[row] / 8;
  Buffer<float> xb(x), freq(std::vector<float>{1.0f});
  const std::vector<int32_t> at{5, 64, 70}, table{2, 0, 1, 3};
  Buffer<int32_t> position(at), sequence(std::vector<int32_t>{0, 1, 0}), pages(table);
  Buffer<fp8_t> out(4 * 64 * heads * dim);
  Buffer<uint8_t> exponents(4 * 64 * heads);
  RotateParams p{};
  p.x = xb.data(), p.stride = dim, p.inv_freq = freq.data(), p.position = position.data();
  p.out = out.data(), p.exponents = exponents.data(), p.pages = pages.data();
  p.sequence = sequence.data(), p.max_pages = 2;
  p.tokens = tokens, p.heads = heads, p.dim = dim, p.attention_scaling = 1;
  launch_rotate(p);
  finish_launches();
  for (int row = 0; row < rows; ++row) {
    const int token = row / heads, page = table[(token == 1 ? 2 : 0) + at[token] / 64];
    const size_t place = (size_t(page) * 64 + at[token] % 64) * heads + row % heads;
    int exponent = -24;
    while (exponent < 15 && std::ldexp(448.0, exponent) < largest[row]) ++exponent;
    ASSERT_TRUE(exponents.written(place));
    ASSERT_EQ(exponents.data()[place], 127 + exponent) << "row " << row;
    for (int i = 0; i < dim; ++i) {
      ASSERT_TRUE(out.written(place * dim + i));
      const float scaled = std::ldexp(x[row * dim + i], -exponent);
      ASSERT_EQ(out.data()[place * dim + i].bits, from_float<fp8_t>(scaled).bits) << "row " << row;
    }
  }
}

TEST(Layer, DenseProducts) {
  const int m = 11, n = 9, k = 200;
  const std::vector<float> x = gaussian(m * k, 12), w = gaussian(n * k, 13);
  std::vector<bf16_t> w16;
  for (float v : w) w16.push_back(from_float<bf16_t>(v));
  Buffer<float> xb(x), wb(w), y(m * n), y16(m * n);
  Buffer<bf16_t> wb16(w16);
  launch_dense_gemv({xb.data(), wb.data(), y.data(), m, n, k, 0, {}});
  launch_dense_gemv({xb.data(), wb16.data(), y16.data(), m, n, k, 2, {}});
  for (int i = 0; i < m * n; ++i) {
    double expected = 0, expected16 = 0;
    for (int c = 0; c < k; ++c) {
      expected += double(x[i / n * k + c]) * w[i % n * k + c];
      expected16 += double(x[i / n * k + c]) * to_float(w16[i % n * k + c]);
    }
    EXPECT_NEAR(y.values()[i], expected, 1e-4);
    EXPECT_NEAR(y16.values()[i], expected16, 1e-4);
  }
}

template <class T>
void check_gemm(int m, int n, int k, bool gather, bool float_out) {
  const std::vector<float> x = gaussian(size_t(m) * k, 30), w = gaussian(size_t(n) * k, 31);
  std::vector<T> xt, wt;
  for (float v : x) xt.push_back(from_float<T>(v));
  for (float v : w) wt.push_back(from_float<T>(v));
  std::vector<int32_t> source(m);
  for (int i = 0; i < m; ++i) source[i] = gather ? (i * 7 + 3) % m : i;
  Buffer<T> xb(xt), wb(wt), y16(size_t(m) * n);
  Buffer<float> y(size_t(m) * n);
  Buffer<int32_t> sb(source);
  launch_dense_gemm({xb.data(),
                     gather ? sb.data() : nullptr,
                     wb.data(),
                     float_out ? static_cast<void*>(y.data()) : y16.data(),
                     m,
                     n,
                     k,
                     std::is_same_v<T, bf16_t>,
                     float_out,
                     {}});
  std::vector<float> got;
  if (float_out)
    got = y.values();
  else
    for (T v : y16.values()) got.push_back(to_float(v));
  for (int i = 0; i < m * n; ++i) {
    double expected = 0;
    for (int c = 0; c < k; ++c)
      expected +=
          double(to_float(xt[size_t(source[i / n]) * k + c])) * to_float(wt[size_t(i % n) * k + c]);
    ASSERT_NEAR(got[i], expected, float_out ? 1e-3 : std::fabs(expected) * 0x1p-8 + 1e-3);
  }
}

TEST(Layer, DenseProductsOnTensorCores) {
  check_gemm<half_t>(130, 136, 72, true, true);  // edges on every side
  check_gemm<bf16_t>(3, 258, 128, false, false);
}

// ---- experts ----

void check_router(int experts, const cpu::RouterOptions& options) {
  // The CPU's router gets logits through an identity matrix.
  const int m = 4, k = options.num_experts_per_tok;
  std::vector<float> logits = gaussian(size_t(m) * experts, 14, 2);
  std::fill_n(logits.begin(), experts, 0.5f);  // nothing but ties
  cpu::Context context(1);
  std::vector<float> identity(size_t(experts) * experts);
  for (int i = 0; i < experts; ++i) identity[size_t(i) * experts + i] = 1;
  const auto matrix = cpu::Matrix::repack(
      context, {reinterpret_cast<const uint8_t*>(identity.data()), identity.size() * 4},
      quant::F32::kGgufId, experts, experts, "identity");
  const cpu::Router twin(std::make_shared<cpu::Linear>(matrix, std::vector<float>{}), options);
  std::vector<int32_t> ids(m * k);
  std::vector<float> weights(m * k);
  twin.forward(context, logits.data(), m, ids.data(), weights.data());

  Buffer<float> lb(logits), bias(options.bias), w(m * k);
  Buffer<int32_t> out(m * k);
  launch_router({lb.data(),
                 options.bias.empty() ? nullptr : bias.data(),
                 out.data(),
                 w.data(),
                 m,
                 experts,
                 k,
                 options.n_group,
                 options.topk_group,
                 options.sigmoid,
                 options.group_sum_of_two,
                 options.norm_topk_prob,
                 options.routed_scaling_factor,
                 {}});
  EXPECT_EQ(out.values(), ids);
  const auto got = w.values();
  // A card's exponential is within two units in the last place of the host's.
  for (int i = 0; i < m * k; ++i)
    EXPECT_NEAR(got[i], weights[i], 1e-6 * std::max(1.0f, options.routed_scaling_factor));
}

TEST(Moe, RouterAgreesWithTheCpu) {
  cpu::RouterOptions options;
  options.num_experts_per_tok = 4;
  check_router(60, options);
  options.num_experts_per_tok = 8, options.norm_topk_prob = true;
  check_router(128, options);
  options.sigmoid = options.group_sum_of_two = true, options.bias = gaussian(256, 15, 0.1f);
  options.n_group = 8, options.topk_group = 4, options.routed_scaling_factor = 2.5f;
  check_router(256, options);
  options = {};
  options.num_experts_per_tok = 6, options.n_group = 8, options.topk_group = 3;
  options.routed_scaling_factor = 16.0f;
  check_router(160, options);
}

/// item_tiles: of an entry of the list.
void check_route(int item_tiles) {
  SCOPED_TRACE(concat("items of ", item_tiles, " tiles"));
  const int m = 11, experts = 40, top_k = 3;
  std::mt19937 random(16);
  std::vector<int32_t> ids;
  for (int t = 0; t < m; ++t) {
    ids.push_back(7);  // a hot one, more than a tile
    ids.push_back(20 + random() % 10);
    ids.push_back(31 + random() % 9);
  }
  std::vector<ExpertSlot> slots(experts, ExpertSlot{nullptr, nullptr, nullptr});
  static const uint8_t bytes[3 * 40] = {};
  for (int e : {7, 22, 25, 33}) slots[e] = {bytes + e, bytes + 40 + e, bytes + 80 + e};
  const int max_tiles = moe_max_tiles(m, experts, top_k);
  Buffer<int32_t> ib(ids), count(1), source(max_tiles * 8), place(m * top_k), cpu(m * top_k);
  Buffer<ExpertSlot> sb(slots);
  Buffer<GemvItem> gate(experts), up(experts), down(experts);
  launch_route({ib.data(),
                sb.data(),
                gate.data(),
                up.data(),
                down.data(),
                count.data(),
                source.data(),
                place.data(),
                cpu.data(),
                m,
                experts,
                top_k,
                max_tiles,
                {},
                item_tiles});
  const auto sources = source.values(), places = place.values(), cpu_ids = cpu.values();
  const int items = count.values()[0];
  std::vector<bool> taken(sources.size(), false);
  int on_gpu = 0;
  for (int a = 0; a < m * top_k; ++a) {
    const bool resident = slots[ids[a]].down != nullptr;
    EXPECT_EQ(cpu_ids[a], resident ? -1 : ids[a]);
    ASSERT_EQ(places[a] >= 0, resident);
    if (!resident) continue;
    ++on_gpu;
    EXPECT_EQ(sources[places[a]], a / top_k);
    EXPECT_FALSE(taken[places[a]]);
    taken[places[a]] = true;
    int holders = 0;
    const auto hot = [&](int i) { return gate.data()[i].weights == slots[7].gate; };
    EXPECT_EQ(hot(0) && hot(1), item_tiles == 1);  // it has two tiles
    for (int i = 0; i < items; ++i) {
      const GemvItem& g = gate.data()[i];
      EXPECT_LE(g.tiles, item_tiles);
      if (places[a] < g.first_tile * 8 || places[a] >= (g.first_tile + g.tiles) * 8) continue;
      ++holders;
      EXPECT_EQ(g.weights, slots[ids[a]].gate);
      EXPECT_EQ(up.data()[i].weights, slots[ids[a]].up);
      EXPECT_EQ(down.data()[i].weights, slots[ids[a]].down);
    }
    EXPECT_EQ(holders, 1);
  }
  for (size_t i = 0; i < sources.size(); ++i) EXPECT_TRUE(taken[i] || sources[i] == -1) << i;
  EXPECT_GT(on_gpu, m);

  // And the sum of what comes back.
  const int n = 70;
  const std::vector<float> y = gaussian(sources.size() * n, 17), weights = gaussian(m * top_k, 18),
                           shared = gaussian(m * n, 19), from_cpu = gaussian(m * n, 20),
                           scores = gaussian(m, 21), late = gaussian(m * n, 33);
  Buffer<float> yb(y), wb(weights), sh(shared), gb(scores), cb(from_cpu), lb(late), out(m * n);
  launch_combine({yb.data(), place.data(), wb.data(), sh.data(), gb.data(), cb.data(), out.data(),
                  m, n, top_k, {}, lb.data()});
  const auto got = out.values();
  for (int t = 0; t < m; ++t) {
    for (int c = 0; c < n; ++c) {
      double expected = shared[t * n + c] / (1 + std::exp(-double(scores[t])));
      expected += double(from_cpu[t * n + c]) + late[t * n + c];
      for (int k = 0; k < top_k; ++k)
        if (places[t * top_k + k] >= 0)
          expected += double(weights[t * top_k + k]) * y[size_t(places[t * top_k + k]) * n + c];
      ASSERT_NEAR(got[t * n + c], expected, 1e-4);
    }
  }
}

TEST(Moe, RouteSortsByExpertAndLeavesTheRestToTheCpu) {
  check_route(1 << 30);
  check_route(1);
}

// ---- sampling ----

std::vector<int32_t> sample(const std::vector<float>& logits, int vocab,
                            const std::vector<kt_cuda_sampling>& how) {
  const int rows = int(how.size());
  Buffer<float> lb(logits);
  Buffer<CheckedSampling> hb(std::vector<CheckedSampling>(how.begin(), how.end()));
  Buffer<int32_t> out(rows);
  launch_sample({lb.data(), hb.data(), out.data(), rows, vocab, {}});
  return out.values();
}

// Of how many rows each kind is checked: ThreadSanitizer follows every access of every fibre, which
// takes a hundred times as long, and looks for what one row shows as well as five.
#if defined(__SANITIZE_THREAD__)
constexpr int kMostDraws = 1, kRow = 261, kLongRow = 33007, kLongRows = 1;
#else
constexpr int kMostDraws = 5, kRow = 777, kLongRow = 40007, kLongRows = 2;
#endif

/// Every way of choosing, from rows that all have the same logits: the token that the CPU chooses.
void check_against_the_cpu(const std::vector<float>& row, int most_draws) {
  const int draws = std::min(most_draws, kMostDraws);
  using Options = program::SamplingOptions;
  const auto drawn = [](float temperature, int top_k, float top_p, float min_p) {
    Options o;
    o.greedy = false, o.temperature = temperature;
    o.top_k = top_k, o.top_p = top_p, o.min_p = min_p;
    return o;
  };
  const int most = static_cast<int>(row.size());
  const std::vector<Options> ways{
      Options{},
      drawn(1, 0, 1, 0),
      drawn(0.6f, 0, 0.9f, 0),
      drawn(1, 20, 1, 0),
      drawn(1.5f, 200, 0.7f, 0),
      drawn(0.8f, 0, 1, 0.05f),
      drawn(1.3f, 40, 0.95f, 0.02f),
      drawn(1, 1, 1, 0),
      drawn(1, 0, 1e-6f, 0),
      drawn(2, most, 1, 0),
      drawn(2, 3 * most, 0.5f, 0),
      drawn(1, 0, 1, 1),
  };
  std::vector<kt_cuda_sampling> how;
  std::vector<int32_t> expected;
  std::vector<float> logits;
  for (size_t way = 0; way < ways.size(); ++way) {
    Options options = ways[way];
    options.seed = 77 + way;
    program::Sampler cpu(options), card(options);
    for (int i = 0; i < draws; ++i) {
      const auto asked = card.for_card();
      ASSERT_TRUE(asked);
      how.push_back(*asked);
      card.chose();
      expected.push_back(cpu.sample(row));
      logits.insert(logits.end(), row.begin(), row.end());
    }
  }
  const auto got = sample(logits, most, how);
  for (size_t i = 0; i < got.size(); ++i)
    EXPECT_EQ(got[i], expected[i]) << "way " << i / draws << ", draw " << i % draws;
}

TEST(Sampling, ChoosesWhatTheCpuChooses) {
  check_against_the_cpu(gaussian(1003, 21, 2), 5);
  check_against_the_cpu(gaussian(37, 23, 3), 5);
}

TEST(Sampling, TiesInfinitiesAndNaNsAreTheCpusToo) {
  std::vector<float> row = gaussian(kRow, 24, 2);
  for (float& v : row) v = std::round(v);  // at every edge many are equal
  row[5] = -0.0f, row[6] = 0.0f;
  check_against_the_cpu(row, 4);
  for (size_t i = 0; i < row.size(); i += 3) row[i] = i % 2 ? NAN : -INFINITY;
  check_against_the_cpu(row, 2);
  row[40] = row[200] = row[201] = INFINITY;
  check_against_the_cpu(row, 2);
}

TEST(Sampling, ALongRowIsSearchedInChunks) {
  const std::vector<float> row = gaussian(kLongRow, 25, 2);  // more than 32 tokens a chunk
  std::vector<kt_cuda_sampling> how;
  std::vector<float> logits;
  std::vector<int32_t> expected;
  for (int i = 0; i < kLongRows; ++i) {
    program::SamplingOptions options;
    options.greedy = false, options.top_p = i == 0 ? 0.95f : 1, options.seed = 4;
    program::Sampler cpu(options), card(options);
    how.push_back(*card.for_card());
    expected.push_back(cpu.sample(row));
    logits.insert(logits.end(), row.begin(), row.end());
  }
  EXPECT_EQ(sample(logits, kLongRow, how), expected);
}

TEST(Sampling, GreedyTakesTheFirstOfTheLargestAndNaNGivesNone) {
  std::vector<float> logits = gaussian(3 * 777, 22);
  logits[500] = logits[600] = 50;
  logits[777 + 776] = 50;
  std::fill_n(logits.begin() + 2 * 777, 777, NAN);
  kt_cuda_sampling greedy{};
  greedy.greedy = 1;
  EXPECT_EQ(sample(logits, 777, {greedy, greedy, greedy}), (std::vector<int32_t>{500, 776, -1}));
  kt_cuda_sampling draw{};
  draw.temperature = draw.top_p = 1;
  EXPECT_EQ(sample(logits, 777, {draw, draw, draw})[2], -1);
  draw.temperature = 0;
  EXPECT_THROW(CheckedSampling{draw}, InvalidArgument);
  draw.temperature = 1, draw.top_p = 0;
  EXPECT_THROW(CheckedSampling{draw}, InvalidArgument);
  EXPECT_NO_THROW(CheckedSampling{greedy});
}

}  // namespace
}  // namespace kt::cuda
