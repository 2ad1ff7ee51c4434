// The int4 product: packing round trips, sources, tile choice over a sweep of shapes, and the
// emulated kernel against double arithmetic on the unpacked weights.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "buffer.h"
#include "values.h"
#include "cuda/common/device.h"
#include "cuda/gemm/rows16.h"
#include "cuda/int4_gemm/grouped.h"
#include "cuda/int4_gemm/int4_gemm.h"
#include "cuda/int4_gemm/dequantise_int4.h"
#include "cuda/int4_gemm/pack.h"
#include "cuda/int4_gemm/placed.h"
#include "cuda/int4_gemm/stripes.h"
#include "quant/quantize.h"

namespace kt::cuda {
namespace {

Int4Matrix random_matrix(int n, int k, int group, bool symmetric, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> scale(0.002f, 0.02f), offset(-0.05f, 0.05f);
  Int4Matrix m{n, k, group, {}, {}, {}};
  m.codes.resize(size_t(n) * k);
  for (uint8_t& q : m.codes) q = random() % 16;
  m.scales.resize(m.codes.size() / group);
  for (float& s : m.scales) s = scale(random);
  if (!symmetric) {
    m.offsets.resize(m.scales.size());
    for (float& o : m.offsets) o = offset(random);
  }
  return m;
}

template <class T>
constexpr FloatType kTypeOf = std::is_same_v<T, bf16_t> ? FloatType::kBf16 : FloatType::kF16;

struct Case {
  int m, n, k, group;
  bool symmetric;
  int sms, arch;
  bool row_scales = false;  // rows were divided by powers of two, and results are floats
};

template <class T>
void check_product(const Case& c, emulated::Order order) {
  SCOPED_TRACE(concat("m=", c.m, " n=", c.n, " k=", c.k, " group=", c.group,
                      " symmetric=", c.symmetric, " sms=", c.sms, " arch=", c.arch));
  emulated::options() = {order, c.arch};
  const PackedInt4 packed = pack_int4(random_matrix(c.n, c.k, c.group, c.symmetric, 7), kTypeOf<T>);
  const Int4Matrix exact = unpack_int4(packed);  // scales as rounded
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  std::vector<T> x(size_t(c.m) * c.k);
  for (T& v : x) v = from_float<T>(normal(random));

  std::vector<float> row_scales;
  for (int row = 0; row < c.m; ++row) row_scales.push_back(std::ldexp(1.0f, 5 * row % 31 - 15));
  Buffer<T> xb(x), y(size_t(c.m) * c.n);
  Buffer<float> factors(row_scales), floats(size_t(c.m) * c.n);
  Buffer<uint8_t> weights(packed.weights);
  Buffer<uint16_t> scales(packed.scales), offsets(packed.offsets);
  Int4GemmParams p{};
  p.x = xb.data(), p.weights = weights.data(), p.scales = scales.data(), p.y = y.data();
  p.offsets = c.symmetric ? nullptr : offsets.data();
  p.m = c.m, p.n = c.n, p.k = c.k, p.group = c.group, p.type = kTypeOf<T>;
  if (c.row_scales) p.row_scales = factors.data(), p.y = floats.data();
  const Int4Tile tile = choose_int4_tile(p, c.sms, c.arch);
  Buffer<float> workspace(int4_workspace_bytes(tile) / 4);
  Buffer<int32_t> counters(std::vector<int32_t>(int4_counters(p, tile), 0));
  p.workspace = workspace.data(), p.counters = counters.data();

  std::vector<float> first;
  for (int repeat = 0; repeat < 2; ++repeat) {  // counters must be ready for the next launch
    launch_int4_gemm(p, tile);
    std::vector<float> got;
    if (c.row_scales) {
      got = floats.values();
      for (size_t i = 0; i < got.size(); ++i) got[i] /= row_scales[i / c.n];
    } else {
      for (const T v : y.values()) got.push_back(to_float(v));
    }
    if (repeat == 0) first = got;
    EXPECT_EQ(0, memcmp(first.data(), got.data(), got.size() * sizeof(float)));
  }
  double squared = 0, whole = 0;
  for (int row = 0; row < c.m; ++row) {
    for (int column = 0; column < c.n; ++column) {
      double expected = 0;
      for (int i = 0; i < c.k; ++i)
        expected += double(to_float(x[size_t(row) * c.k + i])) * exact.value(column, i);
      const double d = first[size_t(row) * c.n + column] - expected;
      squared += d * d;
      whole += expected * expected;
    }
  }
  // Weights are rounded to T after scaling and sums when stored: 2^-9 relative for bf16.
  EXPECT_LT(squared / whole, kTypeOf<T> == FloatType::kBf16 ? 1e-5 : 2e-7);
  for (int32_t counter : counters.values()) EXPECT_EQ(counter, 0);
  emulated::options() = {};
}

using emulated::Order;

TEST(Int4Gemm, EmulatedProductIsRight) {
  // Ragged rows; whole and partial strips and tiles; few and many blocks per tile; every group.
  check_product<half_t>({1, 64, 128, 128, true, 3, 90}, Order::kForward);
  check_product<half_t>({3, 200, 256, 64, false, 2, 90}, Order::kShuffled);
  check_product<half_t>({16, 576, 192, 32, false, 5, 90}, Order::kReverse);
  check_product<half_t>({17, 256, 128, 32, true, 1, 90}, Order::kForward);
  check_product<half_t>({70, 264, 64, 64, true, 3, 90}, Order::kForward);
  check_product<bf16_t>({2, 256, 512, 128, false, 7, 90}, Order::kForward);
  check_product<bf16_t>({33, 136, 256, 32, true, 2, 90}, Order::kShuffled);
}

TEST(Int4Gemm, ScalesRowsAndGivesFloats) {
  check_product<half_t>({3, 200, 256, 64, false, 2, 90, true}, Order::kShuffled);
  check_product<half_t>({18, 136, 128, 32, true, 5, 90, true}, Order::kForward);
  check_product<half_t>({5, 72, 128, 128, false, 3, 75, true}, Order::kReverse);
  check_product<half_t>({3, 329, 128, 64, true, 4, 90, true}, Order::kForward);  // as vocabularies
}

TEST(Int4Gemm, TuringDoesWithoutAsynchronousCopies) {
  check_product<half_t>({5, 136, 256, 128, false, 3, 75}, Order::kForward);
  check_product<half_t>({70, 256, 128, 64, true, 2, 75}, Order::kForward);
}

struct Grouped {
  int n, k, group;
  bool symmetric;
  std::vector<int> tokens;  // of each matrix; 0: it is not in the list
  int sms, arch;
};

/// Experts that a step's tokens chose: matrices of one shape with their rows in tiles of 8, in
/// entries of at most two tiles.
void check_grouped(const Grouped& c, emulated::Order order) {
  SCOPED_TRACE(concat("n=", c.n, " k=", c.k, " group=", c.group, " arch=", c.arch));
  emulated::options() = {order, c.arch};
  const PlacedInt4 placed{c.n, c.k, c.group, !c.symmetric};
  std::mt19937 random(11);
  std::normal_distribution<float> normal(0, 300);
  std::vector<Int4Matrix> exact;
  std::vector<std::unique_ptr<Buffer<uint8_t>>> weights;
  std::vector<GemvItem> items;
  std::vector<int32_t> source;  // of every place: a row, -1: none
  std::vector<int> matrix_of;   // of every tile
  int rows = 0;
  for (size_t e = 0; e < c.tokens.size(); ++e) {
    const PackedInt4 packed =
        pack_int4(random_matrix(c.n, c.k, c.group, c.symmetric, 7 + e), FloatType::kF16);
    exact.push_back(unpack_int4(packed));
    std::vector<uint8_t> bytes = packed.weights;
    for (const std::vector<uint16_t>* part : {&packed.scales, &packed.offsets}) {
      const auto* at = reinterpret_cast<const uint8_t*>(part->data());
      bytes.insert(bytes.end(), at, at + part->size() * 2);
    }
    ASSERT_EQ(bytes.size(), placed.bytes());
    weights.push_back(std::make_unique<Buffer<uint8_t>>(bytes));
    const int count = div_up(c.tokens[e], 8);
    for (int first = 0; first < count; first += kInt4ItemTiles)
      items.push_back({weights[e]->data(), nullptr, int32_t(matrix_of.size()) + first,
                       std::min(kInt4ItemTiles, count - first)});
    matrix_of.insert(matrix_of.end(), count, int(e));
    for (int i = 0; i < count * 8; ++i) source.push_back(i < c.tokens[e] ? rows++ : -1);
  }
  const size_t used = source.size();
  source.insert(source.end(), 16, -1);  // room for more tiles than there are
  std::vector<float> x(size_t(std::max(1, rows)) * c.k);
  for (float& v : x) v = normal(random);
  Buffer<float> xb(x), row_scales(source.size()), y(source.size() * c.n);
  Buffer<int32_t> sources(source), count(std::vector<int32_t>{int32_t(items.size())});
  Buffer<half_t> halves(source.size() * c.k);
  launch_rows16({xb.data(), nullptr, c.k, halves.data(), row_scales.data(), int(source.size()),
                 c.k, 0, {}, sources.data()});
  const int most = int(items.size()) + 3;  // nobody wrote the last of the list
  items.push_back({nullptr, nullptr, 0, 0});
  Buffer<GemvItem> list(items);
  Int4GroupedParams p{list.data(), count.data(), halves.data(), row_scales.data(), y.data(),
                      nullptr,     nullptr,      most,          placed,            {}};
  const Int4Tile tile = choose_int4_grouped_tile(placed, most, c.sms, c.arch);
  Buffer<float> workspace(int4_workspace_bytes(tile) / 4);
  Buffer<int32_t> counters(std::vector<int32_t>(int4_grouped_counters(placed, most, tile), 0));
  p.workspace = workspace.data(), p.counters = counters.data();
  for (int repeat = 0; repeat < 2; ++repeat) launch_int4_grouped(p, tile);
  for (const int32_t counter : counters.values()) EXPECT_EQ(counter, 0);
#if !defined(KT_TEST_ON_GPU)
  for (size_t i = used * c.n; i < y.size(); ++i)  // rows of no item
    ASSERT_FALSE(y.raw().written(i * sizeof(float), sizeof(float)));
#endif
  for (size_t slot = 0; slot < used; ++slot) {
    const Int4Matrix& m = exact[matrix_of[slot / 8]];
    double squared = 0, whole = 0;
    for (int column = 0; column < c.n; ++column) {
      double expected = 0;
      for (int i = 0; i < c.k && source[slot] >= 0; ++i)
        expected += double(x[size_t(source[slot]) * c.k + i]) * m.value(column, i);
      const double d = y.data()[slot * c.n + column] - expected;
      squared += d * d;
      whole += expected * expected;
    }
    if (source[slot] < 0)
      ASSERT_EQ(squared, 0.0) << "place " << slot;
    else
      ASSERT_LT(squared, 5e-7 * whole) << "place " << slot;
  }
  emulated::options() = {};
}

TEST(Int4Grouped, EveryMatrixMultipliesItsOwnRows) {
  check_grouped({200, 128, 32, false, {1, 0, 3}, 3, 90}, Order::kForward);
  check_grouped({128, 320, 64, true, {16, 2, 9, 41}, 2, 90}, Order::kShuffled);  // three entries
  check_grouped({264, 128, 128, true, {7, 8}, 7, 90}, Order::kReverse);
  check_grouped({64, 64, 32, true, {5, 1, 1, 1, 1, 1}, 1, 86}, Order::kForward);
  check_grouped({72, 192, 64, false, {17, 1}, 2, 75}, Order::kShuffled);
  check_grouped({256, 128, 32, false, {2, 1}, 2, 75}, Order::kForward);
  check_grouped({64, 64, 64, true, {0, 0}, 2, 90}, Order::kForward);  // nobody was chosen
}

TEST(Int4Grouped, TileChoiceHoldsOverASweepOfShapes) {
  for (const int arch : {75, 80, 86, 90, 120}) {
    for (const int items : {1, 8, 60, 700}) {
      for (const int n : {64, 128, 768, 1408, 2048, 7168}) {
        const PlacedInt4 m{n, 2048, 64, false};
        const Int4Tile tile = choose_int4_grouped_tile(m, items, 108, arch);
        ASSERT_TRUE(tile.row_tiles == 1 && tile.blocks >= 1 && tile.blocks <= 2 * 108);
        ASSERT_EQ(int4_grouped_counters(m, items, tile), items * div_up(n, tile.tile_n));
        ASSERT_LT(tile.tile_n * (div_up(n, tile.tile_n) - 1), n);
      }
    }
  }
  EXPECT_THROW(choose_int4_grouped_tile({64, 64, 64, false}, 0, 108, 90), InvalidArgument);
  Int4GroupedParams p{};
  p.max_items = 1, p.matrix = {64, 96, 32, true};
  EXPECT_THROW(launch_int4_grouped(p, {1, 128, 4, 1}), InvalidArgument);
  p.matrix.k = 64;
  EXPECT_THROW(launch_int4_grouped(p, {2, 256, 4, 1}), InvalidArgument);
}

TEST(Int4Gemm, TileChoiceHoldsOverASweepOfShapes) {
  for (const int arch : {75, 80, 86, 89, 90, 100, 120}) {
    for (const int sms : {1, 28, 68, 82, 108, 128, 132, 170}) {
      for (const int m : {1, 2, 7, 16, 17, 32, 33, 64, 65, 128, 256}) {
        for (const int n : {8, 64, 128, 256, 576, 1536, 2112, 4096, 7168, 24576, 28672, 129280}) {
          for (const int k : {64, 128, 512, 2048, 7168, 18432}) {
            Int4GemmParams p{};
            p.m = m, p.n = n, p.k = k, p.group = 64;
            const Int4Tile tile = choose_int4_tile(p, sms, arch);
            ASSERT_LE(tile.blocks, 2 * sms);
            ASSERT_GE(tile.blocks, 1);
            // Few rows are never computed in tiles with several times as many.
            ASSERT_LT(16 * (tile.row_tiles - 2), m);
            // Its sums, where everything else is smaller, and the word behind them.
            ASSERT_LE(size_t(16) * tile.row_tiles * tile.tile_n * sizeof(float) + 16,
                      most_shared_bytes(arch));
            const int row_blocks = div_up(m, 16 * tile.row_tiles);
            const Stripes stripes{
                div_up(n, tile.tile_n) * row_blocks, k / 64,
                int(div_up<int64_t>(int64_t(div_up(n, tile.tile_n)) * row_blocks * (k / 64),
                                    tile.blocks))};
            ASSERT_EQ(int4_counters(p, tile), stripes.tiles);
            ASSERT_EQ(int4_workspace_bytes(tile),
                      size_t(8) * tile.blocks * 16 * tile.row_tiles * tile.tile_n);
            // The last stripe ends where the units end, and no two parts share a slot.
            for (const int t : {0, stripes.tiles / 2, stripes.tiles - 1}) {
              ASSERT_LT(stripes.last_block(t), tile.blocks);
              for (int b = stripes.first_block(t); b <= stripes.last_block(t); ++b)
                ASSERT_LT(stripes.slot(b, t), 2 * tile.blocks);
            }
          }
        }
      }
    }
  }
}

TEST(Int4Gemm, StripesCoverEveryUnitOnceAndShareNoSlot) {
  for (const Stripes& s : {Stripes{5, 7, 4}, Stripes{5, 7, 9}, Stripes{1, 100, 3}, Stripes{9, 1, 2},
                           Stripes{3, 4, 12}, Stripes{3, 4, 4}}) {
    const int blocks = div_up(s.tiles * s.tile_units, s.per_block);
    std::vector<int> used(2 * blocks, 0);
    for (int t = 0; t < s.tiles; ++t) {
      std::vector<bool> here(blocks, false);
      for (int u = t * s.tile_units; u < (t + 1) * s.tile_units; ++u) here[u / s.per_block] = true;
      int count = 0;
      for (int b = 0; b < blocks; ++b) {
        count += here[b];
        EXPECT_EQ(here[b], b >= s.first_block(t) && b <= s.last_block(t));
        if (here[b] && s.participants(t) > 1) ++used[s.slot(b, t)];
      }
      EXPECT_EQ(count, s.participants(t));
    }
    for (int uses : used) EXPECT_LE(uses, 1);
  }
}

TEST(Int4Gemm, RefusesWhatItCannotDo) {
  Int4GemmParams p{};
  p.m = 1, p.n = 64, p.k = 64, p.group = 64;
  const auto refused = [&](auto change) {
    Int4GemmParams q = p;
    change(q);
    EXPECT_THROW(choose_int4_tile(q, 4, 90), InvalidArgument);
  };
  refused([](auto& q) { q.m = 0; });
  refused([](auto& q) { q.k = 96; });
  refused([](auto& q) { q.n = 12; });
  refused([](auto& q) { q.group = 16; });
  refused([](auto& q) { q.group = 128; });
  p.type = FloatType::kBf16;
  EXPECT_THROW(choose_int4_tile(p, 4, 75), Unsupported);
}

// ---- packing ----

TEST(Int4Pack, RoundTrip) {
  for (const int n : {64, 8, 200}) {
    for (const bool symmetric : {true, false}) {
      const Int4Matrix m = random_matrix(n, 192, 32, symmetric, n);
      const Int4Matrix back = unpack_int4(pack_int4(m, FloatType::kF16));
      EXPECT_EQ(back.codes, m.codes);
      ASSERT_EQ(back.scales.size(), m.scales.size());
      ASSERT_EQ(back.offsets.size(), m.offsets.size());
      for (size_t i = 0; i < m.scales.size(); ++i)
        EXPECT_NEAR(back.scales[i], m.scales[i], m.scales[i] * 0x1p-11f);
    }
  }
  EXPECT_THROW(pack_int4(random_matrix(8, 96, 32, true, 1), FloatType::kF16), InvalidArgument);
  Int4Matrix huge = random_matrix(8, 64, 64, true, 1);
  huge.scales[3] = 1e6f;
  EXPECT_THROW(pack_int4(huge, FloatType::kF16), InvalidArgument);
}

std::vector<uint8_t> quantised(const std::vector<float>& v, int id, size_t k) {
  std::vector<uint8_t> blocks(v.size() / k * quant::row_bytes(id, k));
  quant::quantize(id, v, k, {}, blocks);
  return blocks;
}

TEST(Int4Pack, GgufCodesAreKeptInGroupsOf32) {
  const std::vector<float> v = gaussian(16 * 512, 3, 0.02f);
  for (const int id : {2, 3, 12}) {  // Q4_0, Q4_1, Q4_K
    const auto blocks = quantised(v, id, 512);
    Int4Error error;
    const Int4Matrix m = int4_from_gguf(blocks, id, 16, 512, 32, id == 2, FloatType::kF16, &error);
    EXPECT_EQ(m.offsets.empty(), id == 2);
    EXPECT_LT(error.relative(), 1e-6) << id;  // only scales were rounded
    // Wider groups cost another rounding, which is told.
    int4_from_gguf(blocks, id, 16, 512, 128, true, FloatType::kF16, &error);
    EXPECT_GT(error.relative(), 1e-3);
    EXPECT_LT(error.relative(), 3e-2);
  }
  const auto q6 = quantised(v, 14, 512);
  Int4Error with_offsets, symmetric;
  int4_from_gguf(q6, 14, 16, 512, 32, false, FloatType::kF16, &with_offsets);
  int4_from_gguf(q6, 14, 16, 512, 128, true, FloatType::kF16, &symmetric);
  EXPECT_LT(with_offsets.relative(), symmetric.relative());
  EXPECT_THROW(int4_from_gguf(q6, 999, 16, 512, 32, true, FloatType::kF16, nullptr), Error);
  EXPECT_THROW(int4_from_gguf(q6, 14, 15, 512, 32, true, FloatType::kF16, nullptr),
               InvalidArgument);
}

/// What is on a card, as a matrix again.
Int4Matrix unpack_placed(const ConvertedInt4& made) {
  const PlacedInt4& m = made.matrix;
  PackedInt4 packed{m.n, m.k, m.group, FloatType::kF16, {}, {}, {}};
  const uint8_t* const at = made.bytes.data();
  packed.weights.assign(at, at + m.weight_bytes());
  packed.scales.resize(m.scale_bytes() / 2);
  std::memcpy(packed.scales.data(), at + m.weight_bytes(), m.scale_bytes());
  if (m.has_offsets) {
    packed.offsets.resize(m.scale_bytes() / 2);
    std::memcpy(packed.offsets.data(), at + m.weight_bytes() + m.scale_bytes(), m.scale_bytes());
  }
  return unpack_int4(packed);
}

TEST(Int4Placed, StripsByThreadsAreTheWholeMatrix) {
  const int n = 200, k = 256;  // three strips and an eighth
  const std::vector<float> v = gaussian(n * k, 4, 0.02f);
  for (const auto& [id, group, becomes, offsets] :
       {std::tuple{2, 0, 32, false}, {12, 0, 32, true}, {14, 0, 64, false}, {14, 32, 32, true},
        {0, 128, 128, false}, {12, 128, 128, false}}) {  // Q4_0, Q4_K, Q6_K, F32
    SCOPED_TRACE(concat("type ", id, " group ", group));
    const auto blocks = id == 0 ? std::vector<uint8_t>((const uint8_t*)v.data(),
                                                       (const uint8_t*)(v.data() + v.size()))
                                : quantised(v, id, k);
    const ConvertedInt4 made = convert_int4(blocks, id, n, k, group, 3);
    EXPECT_EQ(made.matrix.group, becomes);
    EXPECT_EQ(made.matrix.has_offsets, offsets);
    EXPECT_EQ(made.bytes, convert_int4(blocks, id, n, k, group, 1).bytes);
    EXPECT_EQ(placed_int4(made.matrix.type(), n, k).bytes(), made.bytes.size());
    Int4Error error;
    const Int4Matrix whole =
        int4_from_gguf(blocks, id, n, k, becomes, !offsets, FloatType::kF16, &error);
    EXPECT_NEAR(made.error.relative(), error.relative(), 1e-3 * error.relative());
    EXPECT_NEAR(made.error.power, error.power, 1e-6 * error.power);
    const Int4Matrix got = unpack_placed(made);
    EXPECT_EQ(got.codes, whole.codes);
    for (int row = 0; row < n; row += 7)
      EXPECT_NEAR(got.value(row, 5), whole.value(row, 5), 1e-3) << row;
  }
  const auto blocks = quantised(v, 12, k);
  const std::vector<uint8_t> by_one = convert_int4(blocks, 12, n, k, 64, 1).bytes;
  EXPECT_EQ(convert_int4(blocks, 12, n, k, 64, -1).bytes, by_one);
  for (const int group : {-32, 33, 48, 65, 129, 256})  // 33: what the type of 32 with offsets is
    EXPECT_THROW(convert_int4(blocks, 12, n, k, group, 1), InvalidArgument) << group;
  EXPECT_THROW(convert_int4(blocks, 12, n - 8, k, 0, 1), InvalidArgument);
  EXPECT_THROW(convert_int4(quantised(v, 2, 32), 2, n * k / 32, 32, 0, 1), InvalidArgument);
  EXPECT_THROW(placed_int4(-64, 12, 96), InvalidArgument);
  std::vector<float> bad = v;
  bad[77] = NAN;
  const auto* bytes = reinterpret_cast<const uint8_t*>(bad.data());
  EXPECT_THROW(convert_int4({bytes, bad.size() * 4}, 0, n, k, 0, 2), InvalidArgument);
}

TEST(Int4Placed, CountsBytesBeyondTheRangeOfInt) {
  const PlacedInt4 m = placed_int4(-128, INT32_MAX, 128);
  EXPECT_EQ(m.weight_bytes(), (size_t{1} << 31) * 64);
  EXPECT_EQ(m.scale_bytes(), (size_t{1} << 31) * 2);
  EXPECT_EQ(m.bytes(), (size_t{1} << 31) * 66);
}

TEST(Int4Placed, DequantisesToTheValuesOfTheProduct) {
  const int n = 200, k = 128;
  const std::vector<float> v = gaussian(n * k, 8, 0.02f);
  const auto* bytes = reinterpret_cast<const uint8_t*>(v.data());
  for (const int group : {32, 64, 128}) {
    const ConvertedInt4 made = convert_int4({bytes, v.size() * 4}, 0, n, k, group, 1);
    const Int4Matrix exact = unpack_placed(made);
    Buffer<uint8_t> weights(made.bytes);
    Int4GemmParams p{};
    made.matrix.set(p, weights.data());
    for (const auto& [first, rows] : {std::pair{0, n}, {80, 64}, {144, 56}}) {
      Buffer<half_t> out(size_t(rows) * k);  // every value must be written, and none behind it
      launch_dequantise_int4({p.weights, p.scales, p.offsets, out.data(), n, k, group, first, rows,
                              {}});
      const std::vector<half_t> got = out.values();
      for (int row = 0; row < rows; ++row)
        for (int i = 0; i < k; ++i)
          ASSERT_NEAR(to_float(got[size_t(row) * k + i]), exact.value(first + row, i), 1e-4)
              << row << " " << i;
    }
  }
  struct Wrong {
    int k, group, first, rows;
  };
  for (const Wrong& w : {Wrong{96, 32, 0, 8}, {64, 0, 0, 8}, {64, 16, 0, 8}, {64, 32, 60, 8},
                         {64, 32, 8, INT32_MAX}, {64, 32, INT32_MAX, 8}})
    EXPECT_THROW(launch_dequantise_int4({nullptr, nullptr, nullptr, nullptr, 64, w.k, w.group,
                                         w.first, w.rows, {}}),
                 InvalidArgument);
}

TEST(Int4Pack, SearchIsNoWorseThanRoundingToTheRange) {
  const std::vector<float> v = gaussian(8 * 128, 9, 0.02f);
  const Int4Matrix m = quantise_int4(v, 8, 128, 128, true);
  double found = 0, plain = 0;
  for (int row = 0; row < 8; ++row) {
    float top = 0;
    for (int i = 0; i < 128; ++i) top = std::max(top, std::fabs(v[row * 128 + i]));
    for (int i = 0; i < 128; ++i) {
      const float x = v[row * 128 + i], s = top / 7;
      found += std::pow(m.value(row, i) - x, 2);
      plain += std::pow(std::round(x / s) * s - x, 2);
    }
  }
  EXPECT_LE(found, plain);
  // Zeros stay zeros.
  const Int4Matrix zero = quantise_int4(std::vector<float>(128, 0.0f), 1, 128, 128, false);
  EXPECT_EQ(zero.value(0, 5), 0.0f);
}

}  // namespace
}  // namespace kt::cuda
