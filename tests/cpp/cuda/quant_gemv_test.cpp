// Products on quantised weights, emulated: every format's device decoding against the format's own
// unpack, and the product against double arithmetic, on R16 records, the file's blocks and FP8.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <type_traits>
#include <vector>

#include "base/error.h"
#include "buffer.h"
#include "cuda/common/device.h"
#include "cuda/quant_gemv/decode.h"
#include "cuda/quant_gemv/dequantise.h"
#include "cuda/quant_gemv/quant_gemv.h"
#include "quant/formats.h"
#include "quant/r16.h"

namespace kt::cuda {
namespace {

/// A random matrix of a format, as the file has it, woven, and as floats.
struct Weights {
  int n, k, gguf_id;
  std::vector<uint8_t> blocks, records;
  std::vector<float> values;
};

template <class F>
Weights random_weights(int n, int k, unsigned seed) {
  std::mt19937 random(seed);
  Weights w{n, k, F::kGgufId, {}, {}, std::vector<float>(size_t(n) * k)};
  const int per_row = k / F::kValues, groups = div_up(n, 16);
  std::vector<typename F::Block> blocks(size_t(n) * per_row);
  for (size_t b = 0; b < blocks.size(); ++b) {
    // Every code is a block; only scales beyond what weights have are drawn again.
    float largest;
    do {
      auto* bytes = reinterpret_cast<uint8_t*>(&blocks[b]);
      for (size_t i = 0; i < sizeof blocks[b]; ++i) bytes[i] = random();
      float* out = w.values.data() + b * F::kValues;
      unpack(blocks[b], out);
      largest = 0;
      for (int i = 0; i < F::kValues; ++i)
        largest = std::isfinite(out[i]) ? std::max(largest, std::fabs(out[i])) : INFINITY;
    } while (!(largest > 1e-2f && largest < 1e2f));
  }
  w.blocks.resize(blocks.size() * sizeof blocks[0]);
  memcpy(w.blocks.data(), blocks.data(), w.blocks.size());
  w.records.assign(size_t(groups) * per_row * quant::R16<F>::kRecordBytes, 0);
  for (int row = 0; row < n; ++row)
    for (int b = 0; b < per_row; ++b)
      quant::r16_put<F>(blocks[size_t(row) * per_row + b], row % 16,
                        w.records.data() + quant::r16_record<F>(groups, per_row, row / 16, b) *
                                               quant::R16<F>::kRecordBytes);
  return w;
}

/// FP8 with scales per 128 x 128.
struct Fp8Weights : Weights {
  std::vector<float> scales;
};
Fp8Weights random_fp8(int n, int k) {
  std::mt19937 random(5);
  std::uniform_real_distribution<float> uniform(0.001f, 0.01f);
  Fp8Weights w{{n, k, -1, {}, {}, std::vector<float>(size_t(n) * k)}, {}};
  w.scales.resize(size_t(div_up(n, 128)) * div_up(k, 128));
  for (float& s : w.scales) s = uniform(random);
  for (int i = 0; i < n * k; ++i) {
    uint8_t byte;
    do byte = random();
    while ((byte & 127) == 127);
    w.blocks.push_back(byte);
    w.values[i] = to_float(fp8_t{byte}) * w.scales[i / k / 128 * div_up(k, 128) + i % k / 128];
  }
  return w;
}

double nmse(const std::vector<float>& got, const std::vector<double>& expected) {
  double squared = 0, whole = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    squared += (got[i] - expected[i]) * (got[i] - expected[i]);
    whole += expected[i] * expected[i];
  }
  return squared / whole;
}

void check_dequantised(const Weights& w, WeightLayout layout, const float* scales) {
  Buffer<uint8_t> weights(layout == WeightLayout::kR16 ? w.records : w.blocks);
  for (const bool bf16 : {false, true}) {
    Buffer<uint16_t> out(w.values.size());
    launch_dequantise({weights.data(), scales, out.data(), w.n, w.k, w.gguf_id, layout, bf16, {}});
    const std::vector<uint16_t> got = out.values();
    for (size_t i = 0; i < got.size(); ++i) {
      const float value = bf16 ? bf16_to_float(got[i]) : half_to_float(got[i]);
      const float unit = std::max(std::fabs(w.values[i]), 6e-5f) * (bf16 ? 0x1p-8f : 0x1p-11f);
      ASSERT_NEAR(value, w.values[i], unit * 1.01f + 1e-6f) << "value " << i;
    }
  }
}

/// Two items over one matrix each, the second with more tokens than the first.
void check_product(const std::vector<const Weights*>& matrices, WeightLayout layout,
                   const float* scales, const std::vector<int>& tokens, double limit,
                   int arch = 90) {
  const int n = matrices[0]->n, k = matrices[0]->k;
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 3);
  std::vector<GemvItem> items;
  std::vector<int32_t> source;
  std::vector<std::unique_ptr<Buffer<uint8_t>>> buffers;
  int rows = 0, max_tiles = 0;
  for (size_t i = 0; i < matrices.size(); ++i) {
    buffers.push_back(std::make_unique<Buffer<uint8_t>>(
        layout == WeightLayout::kR16 ? matrices[i]->records : matrices[i]->blocks));
    const int tiles = div_up(tokens[i], 8);
    items.push_back({buffers.back()->data(), scales, int32_t(source.size() / 8), tiles});
    for (int t = 0; t < tiles * 8; ++t) source.push_back(t < tokens[i] ? rows++ : -1);
    max_tiles = std::max(max_tiles, tiles);
  }
  const int tiles = int(source.size() / 8);
  std::vector<float> x(size_t(rows) * k);
  for (float& v : x) v = normal(random);
  for (int i = 0; i < k; ++i) x[i] *= 1e4f;  // a row whose values would overflow a half
  if (rows > 1) std::fill_n(x.begin() + k, k, 0.0f);

  Buffer<float> xb(x), sums(prepared_sums(tiles, k)), x_scales(size_t(tiles) * 8);
  Buffer<half_t> fragments(prepared_fragments(tiles, k));
  Buffer<int32_t> sources(source), count(std::vector<int32_t>{int32_t(items.size())});
  const Prepared prepared{fragments.data(), sums.data(), x_scales.data()};
  launch_prepare({xb.data(), nullptr, k, sources.data(), prepared, rows, k, tiles, 0, {}});

  items.push_back({nullptr, nullptr, 0, 0});  // room for more items than there are
  Buffer<GemvItem> item_buffer(items);
  Buffer<float> y(source.size() * n);
  GemvParams p{item_buffer.data(),   count.data(), prepared, y.data(),
               int(items.size()),    max_tiles,    n,        k,
               matrices[0]->gguf_id, layout,       {}};
  launch_quant_gemv(p, choose_gemv_tile(p, 3, arch));
  const std::vector<float> all = y.values();
  for (size_t i = 0; i + 1 < items.size(); ++i) {
    for (int t = 0; t < items[i].tiles * 8; ++t) {
      const int slot = items[i].first_tile * 8 + t, row = source[slot];
      std::vector<float> got(all.begin() + size_t(slot) * n, all.begin() + size_t(slot + 1) * n);
      std::vector<double> expected(n, 0.0);
      if (row >= 0)
        for (int j = 0; j < n; ++j)
          for (int c = 0; c < k; ++c)
            expected[j] += double(x[size_t(row) * k + c]) * matrices[i]->values[size_t(j) * k + c];
      if (row < 0 || row == 1) {
        for (float v : got) ASSERT_EQ(v, 0.0f);
      } else {
        ASSERT_LT(nmse(got, expected), limit) << "item " << i << " token " << t;
      }
    }
  }
}

template <class F>
struct EveryFormat : testing::Test {};
template <class... Fs>
testing::Types<Fs...> test_types(quant::TypeList<Fs...>);
using FormatTypes = decltype(test_types(DeviceFormats{}));
struct FormatName {
  template <class F>
  static std::string GetName(int) {
    return F::kName;
  }
};
TYPED_TEST_SUITE(EveryFormat, FormatTypes, FormatName);

constexpr double kLimit = 2e-6;  // activations have 11 bits; sums cancel to a tenth at worst

TYPED_TEST(EveryFormat, IsDecodedAsItsUnpackDoes) {
  const Weights w = random_weights<TypeParam>(21, 512, 1);
  check_dequantised(w, WeightLayout::kR16, nullptr);
  if (sizeof(typename TypeParam::Block) % 2 == 0)
    check_dequantised(w, WeightLayout::kBlocks, nullptr);
}

TYPED_TEST(EveryFormat, MultipliesWovenRecords) {
  const Weights a = random_weights<TypeParam>(33, 768, 2),
                b = random_weights<TypeParam>(33, 768, 3);
  check_product({&a, &b}, WeightLayout::kR16, nullptr, {3, 11}, kLimit);
}

TYPED_TEST(EveryFormat, MultipliesTheFilesBlocks) {
  if (sizeof(typename TypeParam::Block) % 2 != 0) GTEST_SKIP() << "blocks of an odd size";
  const Weights a = random_weights<TypeParam>(20, 512, 4);
  check_product({&a}, WeightLayout::kBlocks, nullptr, {2}, kLimit);
}

// The emulator holds a block to the shared memory of the card it stands for: 64 KiB on Turing, which
// has no asynchronous copies either, 99 on the cards of most desks.
TYPED_TEST(EveryFormat, FitsTheCardsWithLeastSharedMemory) {
  for (const int arch : {75, 86}) {
    emulated::options().arch = arch;
    const Weights a = random_weights<TypeParam>(24, 768, 2),
                  b = random_weights<TypeParam>(24, 768, 3);
    check_product({&a, &b}, WeightLayout::kR16, nullptr, {1, 7}, kLimit, arch);
    check_product({&a, &b}, WeightLayout::kR16, nullptr, {3, 33}, kLimit, arch);  // two passes
    if (sizeof(typename TypeParam::Block) % 2 == 0)
      check_product({&a}, WeightLayout::kBlocks, nullptr, {9}, kLimit, arch);
    emulated::options() = {};
  }
}

TEST(QuantGemv, ManyChunksAndPasses) {
  emulated::options().order = emulated::Order::kShuffled;
  const Weights a = random_weights<quant::Q4_K>(40, 2560, 2),
                b = random_weights<quant::Q4_K>(40, 2560, 3);
  check_product({&a, &b}, WeightLayout::kR16, nullptr, {1, 3}, kLimit);   // depth 8, one tile
  check_product({&a, &b}, WeightLayout::kR16, nullptr, {41, 3}, kLimit);  // two passes
  emulated::options() = {};
  const Weights c = random_weights<quant::Q8_0>(16, 96, 3);  // less than a chunk
  check_product({&c}, WeightLayout::kR16, nullptr, {8}, kLimit);
}

TEST(QuantGemv, ManyChunksOnTheCardsWithLeastSharedMemory) {
  for (const int arch : {75, 89}) {
    emulated::options().arch = arch;
    const Weights a = random_weights<quant::Q6_K>(40, 2560, 2);
    check_product({&a}, WeightLayout::kR16, nullptr, {8}, kLimit, arch);  // depth 8
    check_product({&a}, WeightLayout::kR16, nullptr, {32}, kLimit, arch);
    const Fp8Weights w = random_fp8(150, 2080);
    Buffer<float> scales(w.scales);
    check_product({&w}, WeightLayout::kFp8, scales.data(), {5}, kLimit, arch);
    check_product({&w}, WeightLayout::kFp8, scales.data(), {17}, kLimit, arch);
    emulated::options() = {};
  }
}

TEST(QuantGemv, Fp8WithScalesPer128) {
  const Fp8Weights w = random_fp8(150, 416);
  Buffer<float> scales(w.scales);
  check_dequantised(w, WeightLayout::kFp8, scales.data());
  check_product({&w}, WeightLayout::kFp8, scales.data(), {5}, kLimit);
}

TEST(QuantGemv, FloatsInRows) {
  const auto check = [](auto format) {
    using F = decltype(format);
    const Weights a = random_weights<F>(37, 352, 2), b = random_weights<F>(37, 352, 3);
    check_product({&a, &b}, WeightLayout::kRows, nullptr, {3, 11}, kLimit);
  };
  check(quant::F32{}), check(quant::F16{}), check(quant::BF16{});
}

TEST(QuantGemv, RefusesWhatItCannotDo) {
  GemvParams p{};
  p.n = 16, p.k = 300, p.max_items = p.max_tiles = 1, p.gguf_id = quant::Q4_K::kGgufId;
  EXPECT_THROW(choose_gemv_tile(p, 4, 90), InvalidArgument);
  p.k = 512, p.gguf_id = 999;
  EXPECT_THROW(choose_gemv_tile(p, 4, 90), Error);
  p.gguf_id = quant::TQ1_0::kGgufId;
  EXPECT_THROW(launch_quant_gemv(p, {1, 2, 1, 4, 64u << 10}), Unsupported);
  EXPECT_THROW(check_gemv_format(p.gguf_id), Unsupported);
  EXPECT_THROW(check_gemv_format(999), Error);
  EXPECT_NO_THROW(check_gemv_format(quant::BF16::kGgufId));
}

}  // namespace
}  // namespace kt::cuda
