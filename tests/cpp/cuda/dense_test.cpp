// What prompts add to the products of few rows, emulated: f16 rows, dequantised rows of a matrix,
// grouped and strided products on tensor cores, sorting by expert and adding what experts give;
// each against arithmetic in double.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "buffer.h"
#include "values.h"
#include "cuda/gemm/dense_gemm.h"
#include "cuda/gemm/rows16.h"
#include "cuda/model/dense.h"
#include "cuda/moe/moe.h"
#include "cuda/quant_gemv/dequantise.h"
#include "quant/convert.h"
#include "quant/formats.h"
#include "quant/quantize.h"

namespace kt::cuda {
namespace {

std::vector<half_t> halves(const std::vector<float>& values) {
  std::vector<half_t> rounded;
  for (float v : values) rounded.push_back({float_to_half(v)});
  return rounded;
}

TEST(Dense, RowsAreScaledToTheRangeOfHalves) {
  const int rows = 11, k = 70, stride = 73;
  std::vector<float> x = gaussian(size_t(rows) * stride, 1), up = gaussian(x.size(), 2);
  for (int i = 0; i < k; ++i) x[3 * stride + i] = 0, x[5 * stride + i] *= 1e6f;
  Buffer<float> xb(x), ub(up), scales(rows);
  for (const bool gated : {false, true}) {
    Buffer<half_t> out(size_t(rows) * k);
    launch_rows16(
        {xb.data(), gated ? ub.data() : nullptr, stride, out.data(), scales.data(), rows, k, 0,
         {}});
    const std::vector<half_t> got = out.values();
    for (int row = 0; row < rows; ++row) {
      const float scale = scales.values()[row];
      EXPECT_EQ(std::exp2(std::round(std::log2(scale))), scale) << "no power of two";
      float largest = 0;
      for (int i = 0; i < k; ++i) {
        const float v = x[row * stride + i];
        const float expected =
            gated ? float(v / (1 + std::exp(-double{v}))) * up[row * stride + i] : v;
        largest = std::max(largest, std::fabs(expected));
        const float value = half_to_float(got[row * k + i].bits) * scale;
        ASSERT_NEAR(value, expected, scale * 0x1p-10f) << "row " << row << " value " << i;
      }
      if (largest > 0) {
        EXPECT_GE(largest, scale * 0.999f);
        EXPECT_LT(largest, scale * 2.001f);
      }
    }
  }
  Buffer<half_t> in(halves(x)), out(size_t(rows) * k);
  launch_rows16({in.data(), nullptr, stride, out.data(), scales.data(), rows, k, 1, {}});
  EXPECT_NEAR(half_to_float(out.values()[k + 2].bits) * scales.values()[1], x[stride + 2], 2e-3);
}

TEST(Dense, APartOfAMatrixIsDequantised) {
  const int n = 37, k = 256, first = 16, rows = 20;
  const std::vector<float> values = gaussian(size_t(n) * k, 3);
  const auto check = [&](int gguf_id, WeightLayout layout) {
    std::vector<uint8_t> blocks(quant::row_bytes(gguf_id, k) * n), bytes;
    quant::quantize(gguf_id, values, k, {}, blocks);
    std::vector<float> exact(values.size());
    quant::dequantize(gguf_id, blocks, exact);
    if (layout == WeightLayout::kR16) {
      bytes.resize(quant::r16_bytes(gguf_id, blocks.size(), n));
      quant::r16_pack(gguf_id, blocks, n, bytes);
    } else {
      bytes = blocks;
    }
    Buffer<uint8_t> weights(bytes);
    for (const bool to_bf16 : {false, true}) {
      Buffer<uint16_t> out(size_t(rows) * k);
      DequantiseParams p{weights.data(), nullptr, out.data(), n, k, gguf_id, layout, to_bf16, {}};
      p.first = first, p.rows = rows;
      launch_dequantise(p);
      const std::vector<uint16_t> got = out.values();
      for (size_t i = 0; i < got.size(); ++i) {
        const float value = to_bf16 ? bf16_to_float(got[i]) : half_to_float(got[i]);
        const float expected = exact[first * k + i];
        ASSERT_NEAR(value, expected,
                    std::fabs(expected) * (to_bf16 ? 0x1p-8f : 0x1p-11f) * 1.01f + 1e-6f)
            << "type " << gguf_id << " value " << i;
      }
    }
  };
  check(quant::Q4_K::kGgufId, WeightLayout::kR16);
  check(quant::Q6_K::kGgufId, WeightLayout::kBlocks);
  check(quant::F32::kGgufId, WeightLayout::kRows);
  check(quant::F16::kGgufId, WeightLayout::kRows);
  check(quant::BF16::kGgufId, WeightLayout::kRows);
  DequantiseParams p{nullptr, nullptr, nullptr, n, k, 12, WeightLayout::kR16, false, {}};
  p.first = 8, p.rows = 8;
  EXPECT_THROW(launch_dequantise(p), InvalidArgument);
  p.first = 32, p.rows = 8;
  EXPECT_THROW(launch_dequantise(p), InvalidArgument);
}

TEST(Dense, AProductPerHead) {
  // x [m, heads, head], of which the first k values are multiplied; y [m, heads, n].
  const int m = 67, heads = 3, head = 48, n = 36, k = 40;
  const std::vector<half_t> x = halves(gaussian(size_t(m) * heads * head, 4)),
                            w = halves(gaussian(size_t(heads) * n * k, 5));
  Buffer<half_t> xb(x), wb(w);
  Buffer<float> y(size_t(m) * heads * n);
  DenseGemmParams p{xb.data(), nullptr, wb.data(), y.data(), m, n, k, false, true, {}};
  p.x_stride = heads * head, p.y_stride = heads * n, p.products = heads;
  p.x_step = head, p.w_step = n * k, p.y_step = n;
  launch_dense_gemm(p);
  const std::vector<float> got = y.values();
  for (int row = 0; row < m * heads; ++row) {
    for (int j = 0; j < n; ++j) {
      double expected = 0;
      for (int c = 0; c < k; ++c)
        expected += double(half_to_float(x[row * head + c].bits)) *
                    half_to_float(w[(row % heads * n + j) * k + c].bits);
      ASSERT_NEAR(got[row * n + j], expected, 1e-3) << "row " << row << " output " << j;
    }
  }
}

TEST(Dense, RunsOfGatheredRowsWithWeightsOfTheirOwn) {
  emulated::options().order = emulated::Order::kShuffled;
  const int rows = 23, n = 130, k = 72;
  const std::vector<half_t> x = halves(gaussian(size_t(rows) * k, 6));
  std::vector<float> scales(rows);
  for (int i = 0; i < rows; ++i) scales[i] = std::exp2(float(i % 5 - 2));
  std::vector<int32_t> source(200);
  for (int i = 0; i < 200; ++i) source[i] = (i * 7 + 3) % rows;
  const std::vector<half_t> w = halves(gaussian(size_t(3) * n * k, 7));
  Buffer<half_t> xb(x), wb(w);
  Buffer<float> sb(scales), y(size_t(150) * n);
  Buffer<int32_t> from(source);
  DenseGemmParams p{xb.data(), from.data(), wb.data(), y.data(), 133, n, k, false, true, {}};
  p.scales = sb.data(), p.products = 3, p.w_step = n * k, p.has_runs = true;
  // Rows 10 and 144 ... of y belong to nobody.
  p.runs[0] = {0, 10, 0}, p.runs[1] = {67, 133, 11}, p.runs[2] = {20, 0, 10};
  launch_dense_gemm(p);
  finish_launches();
  for (int product = 0; product < 2; ++product) {
    const GemmRun& run = p.runs[product];
    for (int i = 0; i < run.rows * n; ++i) {
      const int row = source[run.first + i / n];
      double expected = 0;
      for (int c = 0; c < k; ++c)
        expected += double(half_to_float(x[row * k + c].bits)) *
                    half_to_float(w[(product * n + i % n) * k + c].bits);
      ASSERT_NEAR(y.data()[run.out * n + i], expected * scales[row], 4e-3) << product << ' ' << i;
    }
  }
#if !defined(KT_TEST_ON_GPU)
  for (const int row : {10, 144, 149})
    for (int i = 0; i < n; ++i) ASSERT_FALSE(y.written(row * n + i)) << "row " << row;
#endif
  emulated::options() = {};
  p.x_stride = 76;
  EXPECT_THROW(launch_dense_gemm(p), InvalidArgument);
  p.x_stride = 0, p.products = 17;
  EXPECT_THROW(launch_dense_gemm(p), InvalidArgument);
  p.products = 1, p.float_out = false;
  EXPECT_THROW(launch_dense_gemm(p), InvalidArgument);
}

TEST(Dense, AssignmentsAreSortedByExpertAndTheirResultsAdded) {
  const int m = 201, experts = 9, top_k = 3, n = 300;
  std::mt19937 random(8);
  std::vector<int32_t> ids(m * top_k);
  for (int row = 0; row < m; ++row) {
    std::vector<int32_t> all{0, 1, 2, 3, 5, 6, 7, 8};  // nobody chooses 4
    std::shuffle(all.begin(), all.end(), random);
    std::copy_n(all.begin(), top_k, ids.begin() + row * top_k);
  }
  Buffer<int32_t> idb(ids), counts(experts), host(experts), source(m * top_k), place(m * top_k);
  launch_sort({idb.data(), counts.data(), host.data(), source.data(), place.data(), m, experts,
               top_k, {}});
  std::vector<int32_t> expected(experts), first(experts);
  for (const int32_t id : ids) ++expected[id];
  EXPECT_EQ(counts.values(), expected);
  EXPECT_EQ(host.values(), expected);
  for (int e = 1; e < experts; ++e) first[e] = first[e - 1] + expected[e - 1];
  std::vector<int32_t> next = first;
  for (int a = 0; a < m * top_k; ++a) {
    ASSERT_EQ(place.values()[a], next[ids[a]]++) << "assignment " << a;
    ASSERT_EQ(source.values()[place.values()[a]], a / top_k);
  }

  // Experts 2, 7 and a part of 5.
  CombineRunsParams p{};
  p.runs[0] = {first[2], expected[2], 0};
  p.runs[1] = {first[7], expected[7], expected[2]};
  p.runs[2] = {first[5] + 10, 20, expected[2] + expected[7]};
  const int rows = expected[2] + expected[7] + 20;
  const std::vector<float> y = gaussian(size_t(rows) * n, 9), out = gaussian(size_t(m) * n, 10),
                           weights = gaussian(m * top_k, 11);
  Buffer<float> yb(y), ob(out), wb(weights);
  p.y = yb.data(), p.place = place.data(), p.weights = wb.data(), p.out = ob.data();
  p.m = m, p.n = n, p.top_k = top_k, p.num_runs = 3;
  launch_combine_runs(p);
  const std::vector<float> got = ob.values();
  for (int i = 0; i < m * n; ++i) {
    double sum = out[i];
    for (int k = 0; k < top_k; ++k) {
      const int a = i / n * top_k + k, at = place.data()[a] - first[ids[a]];
      const int in_part = at - 10;
      int row = -1;
      if (ids[a] == 2) row = at;
      if (ids[a] == 7) row = expected[2] + at;
      if (ids[a] == 5 && in_part >= 0 && in_part < 20) row = expected[2] + expected[7] + in_part;
      if (row >= 0) sum += double{weights[a]} * y[size_t(row) * n + i % n];
    }
    ASSERT_NEAR(got[i], sum, 1e-5) << "token " << i / n;
  }
}

TEST(Dense, ExpertsAreCutIntoChunks) {
  std::mt19937 random(12);
  for (int trial = 0; trial < 200; ++trial) {
    const int most_rows = 1 + random() % 40, most_experts = 1 + random() % 5;
    std::vector<int32_t> counts(1 + random() % 20), first{0};
    for (int32_t& count : counts) {
      count = random() % 3 ? random() % 60 : 0;
      first.push_back(first.back() + count);
    }
    std::vector<int> experts;
    for (size_t e = 0; e < counts.size(); ++e)
      if (random() % 4) experts.push_back(int(e));
    std::vector<std::pair<int, int>> expected, got;  // (expert, place), in order
    for (const int e : experts)
      for (int i = 0; i < counts[e]; ++i) expected.push_back({e, first[e] + i});
    for (const auto& chunk : cut_experts(experts, counts, most_rows, most_experts)) {
      ASSERT_FALSE(chunk.empty());
      ASSERT_LE(int(chunk.size()), most_experts);
      int rows = 0;
      for (const ExpertPart& part : chunk) {
        ASSERT_GT(part.run.rows, 0);
        ASSERT_EQ(part.run.out, rows);
        rows += part.run.rows;
        for (int i = 0; i < part.run.rows; ++i) got.push_back({part.expert, part.run.first + i});
      }
      ASSERT_LE(rows, most_rows);
    }
    ASSERT_EQ(got, expected);
  }
  EXPECT_TRUE(cut_experts({0, 1}, {0, 0}, 8, 2).empty());
  EXPECT_THROW(cut_experts({2}, {1, 1}, 8, 2), InvalidArgument);
  EXPECT_THROW(cut_experts({0}, {1}, 8, 17), InvalidArgument);
}

}  // namespace
}  // namespace kt::cuda
