// Attention in int16 over tiles, on every usable instruction set, against plain double arithmetic on
// what the tiles really hold; and the states of parts of a sequence folded into that of the whole.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cpu/isa.h"
#include "isa_fixture.h"

namespace kt::cpu {
namespace {

struct Tiles : IsaTest {
  Tiles() : IsaTest(23) {}
};
KT_EVERY_ISA(Tiles);

// A tile in a heap block of its exact size, full of what an earlier user left.
std::unique_ptr<uint8_t[]> dirty_tile(int k_dim, int v_dim) {
  const auto bytes = static_cast<size_t>(kv_tile_bytes(k_dim, v_dim));
  std::unique_ptr<uint8_t[]> tile(new uint8_t[bytes]);
  std::memset(tile.get(), 0xFF, bytes);  // steps are NaN
  return tile;
}

TEST_P(Tiles, HoldWhatIsPutToHalfAStep) {
  for (const auto& [k_dim, v_dim] : {std::pair{128, 128}, {64, 32}, {5, 3}, {40, 20}, {96, 130}}) {
    const auto tile = dirty_tile(k_dim, v_dim);
    std::vector<std::vector<float>> keys, values;
    for (int slot = 0; slot < kKvBlock; ++slot) {
      keys.push_back(floats(k_dim, slot + 0.1f));
      values.push_back(floats(v_dim, 1.0f / (slot + 1)));
      if (slot == 7) std::fill(keys[slot].begin(), keys[slot].end(), 0.0f);
      table().put_tile(keys[slot].data(), k_dim, values[slot].data(), v_dim, slot, tile.get());
    }
    const auto close = [](const std::vector<float>& given, const std::vector<float>& got,
                          double most) {
      double top = 0, norm = 0;
      for (const float x : given) top = std::max(top, std::abs(double{x})), norm += double{x} * x;
      const double step = std::max(top / most, std::sqrt(norm) / 43000);
      for (size_t i = 0; i < given.size(); ++i)
        ASSERT_NEAR(given[i], got[i], 0.5001 * step + 1e-6 * top) << i;
    };
    for (int slot = 0; slot < kKvBlock; ++slot) {
      std::vector<float> key(k_dim), value(v_dim);
      table().get_tile(tile.get(), k_dim, v_dim, slot, key.data(), value.data());
      close(keys[slot], key, 32767);
      close(values[slot], value, 10920);
    }
  }
}

// Some query rows over `length` positions in tiles.
struct Problem {
  int rows, k_dim, v_dim;
  std::vector<int32_t> length;  // seen by each row
  std::vector<std::unique_ptr<uint8_t[]>> tiles;
  std::vector<float> q;
  std::vector<std::vector<float>> keys, values;  // as the tiles hold them

  std::vector<double> expected(int row) const {
    std::vector<double> weight(length[row]), out(v_dim, 0.0);
    double top = -INFINITY, sum = 0;
    for (int p = 0; p < length[row]; ++p) {
      for (int i = 0; i < k_dim; ++i) weight[p] += double{q[row * k_dim + i]} * keys[p][i];
      top = std::max(top, weight[p]);
    }
    for (double& w : weight) sum += w = std::exp(w - top);
    for (int p = 0; p < length[row]; ++p)
      for (int i = 0; i < v_dim; ++i) out[i] += weight[p] / sum * values[p][i];
    return out;
  }
};

// States as the kernels take them: out in rows of v_dim + 5.
struct States {
  States(int rows, int v_dim)
      : out(rows * (v_dim + 5), -777.0f),
        top(rows, -std::numeric_limits<float>::infinity()),
        total(rows, 0.0f) {
    for (int r = 0; r < rows; ++r) {
      pointers.push_back(out.data() + r * (v_dim + 5));
      std::fill_n(pointers[r], v_dim, 0.0f);
    }
  }
  std::vector<float> out, top, total;
  std::vector<float*> pointers;
};

void attend(const KernelTable& table, const Problem& problem, int first, int end, States& states) {
  std::vector<int16_t> rounded(problem.rows * (problem.k_dim + 1));
  std::vector<const int16_t*> q;
  std::vector<float> steps;
  for (int r = 0; r < problem.rows; ++r) {
    int16_t* row = rounded.data() + r * (problem.k_dim + 1);
    steps.push_back(table.round_int16(problem.q.data() + r * problem.k_dim, problem.k_dim, row));
    q.push_back(row);
  }
  for (int page = first; page < end; ++page) {
    std::vector<int32_t> count;
    for (const int32_t length : problem.length)
      count.push_back(std::clamp(length - page * kKvBlock, 0, kKvBlock));
    table.attend_tile({problem.rows, q.data(), steps.data(), count.data(), problem.k_dim,
                       problem.v_dim, problem.tiles[page].get(),
                       page + 1 < end ? problem.tiles[page + 1].get() : nullptr, states.pointers.data(),
                       states.top.data(), states.total.data()});
  }
}

void finish(const KernelTable& table, const Problem& problem, States& states, States& part,
            bool is_last) {
  table.fold_tiles({problem.rows, problem.v_dim, states.pointers.data(), states.top.data(),
                    states.total.data(), part.pointers.data(), part.top.data(), part.total.data(),
                    is_last});
}

Problem make_problem(const KernelTable& table, std::mt19937& random, int rows, int k_dim, int v_dim,
                     int length, float spread) {
  std::normal_distribution<float> normal;
  Problem problem{rows, k_dim, v_dim, {}, {}, {}, {}, {}};
  for (int r = 0; r < rows; ++r) problem.length.push_back(length - (rows - 1 - r) * 7 % length);
  for (int i = 0; i < rows * k_dim; ++i)
    problem.q.push_back(spread * normal(random) / std::sqrt(static_cast<float>(k_dim)));
  for (int p = 0; p < length; ++p) {
    if (p % kKvBlock == 0) problem.tiles.push_back(dirty_tile(k_dim, v_dim));
    std::vector<float> key(k_dim), value(v_dim);
    for (float& x : key) x = normal(random);
    for (float& x : value) x = normal(random) + 0.5f;
    auto* tile = problem.tiles.back().get();
    table.put_tile(key.data(), k_dim, value.data(), v_dim, p % kKvBlock, tile);
    table.get_tile(tile, k_dim, v_dim, p % kKvBlock, key.data(), value.data());
    problem.keys.push_back(key);
    problem.values.push_back(value);
  }
  return problem;
}

TEST_P(Tiles, AttentionIsSoftmaxOverThem) {
  for (const auto& [k_dim, v_dim] : {std::pair{128, 128}, {64, 96}, {6, 3}, {40, 20}, {5, 33}}) {
    for (const int rows : {1, 2, 3, 8, 11, 24}) {
      for (const int length : {1, 64, 65, 200}) {
        for (const float spread : {1.0f, 12.0f}) {
          const Problem problem =
              make_problem(table(), random_, rows, k_dim, v_dim, length, spread);
          const int pages = static_cast<int>(problem.tiles.size());
          States whole(rows, v_dim), result(rows, v_dim);
          attend(table(), problem, 0, pages, whole);
          finish(table(), problem, result, whole, true);
          double error = 0, size = 0;
          for (int r = 0; r < rows; ++r) {
            const auto expected = problem.expected(r);
            for (int i = 0; i < v_dim; ++i) {
              const double d = result.pointers[r][i] - expected[i];
              error += d * d, size += expected[i] * expected[i];
            }
            for (int i = v_dim; i < v_dim + 5; ++i) ASSERT_EQ(result.pointers[r][i], -777.0f);
          }
          // A score's error is 1e-5 of the product of the norms, spread * sqrt(k_dim) or so.
          const double most = 2e-7 * (spread > 1 ? spread * spread : 1);
          ASSERT_LT(error, most * size) << k_dim << ' ' << v_dim << ' ' << rows << ' ' << length;
        }
      }
    }
  }
}

// A row's bits do not depend on the rows beside it, and folding parts is folding the same parts.
TEST_P(Tiles, ARowIsAloneAmongOthers) {
  const int k_dim = 64, v_dim = 64;
  const Problem problem = make_problem(table(), random_, 13, k_dim, v_dim, 300, 3.0f);
  const auto folded = [&](const Problem& one) {
    States result(one.rows, v_dim);
    for (const auto& [first, end] : {std::pair{0, 2}, {2, 4}, {4, 5}}) {
      States part(one.rows, v_dim);
      attend(table(), one, first, end, part);
      finish(table(), one, result, part, end == 5);
    }
    return result;
  };
  Problem alone = make_problem(table(), random_, 1, k_dim, v_dim, 300, 3.0f);
  const States together = folded(problem);
  for (int r = 0; r < problem.rows; ++r) {
    alone.tiles.clear();
    for (const auto& tile : problem.tiles) {
      alone.tiles.push_back(dirty_tile(k_dim, v_dim));
      std::memcpy(alone.tiles.back().get(), tile.get(), kv_tile_bytes(k_dim, v_dim));
    }
    alone.length = {problem.length[r]};
    alone.q.assign(problem.q.begin() + r * k_dim, problem.q.begin() + (r + 1) * k_dim);
    const States own = folded(alone);
    for (int i = 0; i < v_dim; ++i)
      ASSERT_EQ(own.pointers[0][i], together.pointers[r][i]) << r << ' ' << i;
  }
}

TEST_P(Tiles, NothingSeenIsNothingAndNaNIsSeen) {
  const Problem problem = make_problem(table(), random_, 3, 32, 32, 70, 1.0f);
  Problem blind{3, 32, 32, {0, 70, 0}, {}, problem.q, {}, {}};
  for (const auto& tile : problem.tiles) {
    blind.tiles.push_back(dirty_tile(32, 32));
    std::memcpy(blind.tiles.back().get(), tile.get(), kv_tile_bytes(32, 32));
  }
  States part(3, 32), result(3, 32);
  attend(table(), blind, 0, 2, part);
  finish(table(), blind, result, part, true);
  for (int i = 0; i < 32; ++i) {
    EXPECT_EQ(result.pointers[0][i], 0.0f);
    EXPECT_EQ(result.pointers[2][i], 0.0f);
    EXPECT_TRUE(std::isfinite(result.pointers[1][i]));
  }
  for (const bool in_key : {true, false}) {
    std::vector<float> bad(32, NAN), good(32, 1.0f);
    table().put_tile(in_key ? bad.data() : good.data(), 32, in_key ? good.data() : bad.data(), 32,
                     3, blind.tiles[0].get());
    States sees(3, 32), ends(3, 32);
    attend(table(), blind, 0, 2, sees);
    finish(table(), blind, ends, sees, true);
    for (int i = 0; i < 32; ++i) EXPECT_TRUE(std::isnan(ends.pointers[1][i])) << in_key;
  }
}

}  // namespace
}  // namespace kt::cpu
