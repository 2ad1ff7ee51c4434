// Every usable instruction set's table against plain double arithmetic, with guarded buffers: what
// is written is all that should be and nothing else. Inputs lie in heap blocks of their exact size,
// so that AddressSanitizer sees a read beyond them (tests/tools/sanitize.sh). The products'
// numerics at every shape and rounding are tests/python/kernel_checks.py's.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "cpu/isa.h"
#include "isa_fixture.h"
#include "quant/convert.h"
#include "quant/formats.h"
#include "quant/r16.h"

namespace kt::cpu {
namespace {

constexpr float kGuard = -54321.0f;

struct Kernels : IsaTest {
  Kernels() : IsaTest(17) {}
};
KT_EVERY_ISA(Kernels);

// `count` floats behind `offset` others, so that nothing is aligned by accident.
struct Guarded {
  explicit Guarded(int64_t count) : memory(count + 6, kGuard), size(count) {}
  float* data() { return memory.data() + 3; }
  bool intact() const {
    for (int i = 0; i < 3; ++i)
      if (memory[i] != kGuard || memory[size + 3 + i] != kGuard) return false;
    return true;
  }
  bool written() const {
    return std::find(memory.begin() + 3, memory.end() - 3, kGuard) == memory.end() - 3;
  }
  std::vector<float> memory;
  int64_t size;
};

template <class F>
typename F::Block random_block(std::mt19937& random) {
  typename F::Block block;
  auto* bytes = reinterpret_cast<uint8_t*>(&block);
  float values[F::kValues];
  bool sane;
  do {  // random bytes are a valid block; only scales beyond reason are drawn again
    for (size_t i = 0; i < sizeof block; ++i) bytes[i] = static_cast<uint8_t>(random());
    unpack(block, values);
    sane = true;
    for (const float value : values) sane = sane && std::abs(value) < 1e4f;
  } while (!sane);
  return block;
}

// One matrix of a format: R16 records in a heap block of their size, and its floats.
template <class F>
struct TestMatrix {
  TestMatrix(int64_t rows, int64_t blocks, std::mt19937& random)
      : rows(rows), k(blocks * F::kValues), values(rows * k) {
    const int64_t groups = (rows + 15) / 16;
    bytes = groups * blocks * quant::R16<F>::kRecordBytes;
    records.reset(new uint8_t[bytes]());
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t b = 0; b < blocks; ++b) {
        const auto block = random_block<F>(random);
        unpack(block, &values[row * k + b * F::kValues]);
        quant::r16_put<F>(block, static_cast<int>(row % 16),
                          records.get() + (row / 16 * blocks + b) * quant::R16<F>::kRecordBytes);
      }
  }
  int64_t rows, k;
  size_t bytes;
  std::vector<float> values;
  std::unique_ptr<uint8_t[]> records;
};

// ||a - b||^2 / ||b||^2
double nmse(const float* a, const std::vector<double>& b) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    error += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return norm > 0 ? error / norm : error;
}

TEST_P(Kernels, MatmulWritesItsRowsAndNothingElse) {
  quant::for_each_format([&]<class F>() {
    const FormatKernels& format = format_kernels(table(), F::kGgufId);
    for (const int64_t rows : {1, 15, 16, 17, 33}) {
      const TestMatrix<F> matrix(rows, F::kValues == 1 ? 35 : 2, random_);
      for (const int tokens : {1, 3, 65}) {
        for (const auto rounding : {Rounding::kFloat, Rounding::kExact, Rounding::kDigit}) {
          if (F::kGroup == 0 && rounding != Rounding::kFloat) continue;
          // Range of groups as an operator would cut it: the last group alone, or all.
          const int64_t groups = (rows + 15) / 16;
          for (const int64_t begin : {int64_t{0}, groups - 1}) {
            const int64_t out_rows = rows - begin * 16;
            const auto x = floats(tokens * matrix.k);
            std::vector<std::unique_ptr<uint8_t[]>> ints(tokens);
            std::vector<std::vector<float>> copies;
            std::vector<const void*> inputs;
            std::vector<Guarded> outputs(tokens, Guarded(out_rows));
            std::vector<float*> y;
            for (int t = 0; t < tokens; ++t) {
              copies.emplace_back(x.begin() + t * matrix.k, x.begin() + (t + 1) * matrix.k);
              ints[t].reset(new uint8_t[act_row_bytes(matrix.k)]);
              if (rounding == Rounding::kExact)
                table().quantize_exact(copies[t].data(), 0, matrix.k, ints[t].get());
              if (rounding == Rounding::kDigit)
                table().quantize_digit(copies[t].data(), 0, matrix.k, matrix.k, ints[t].get());
              y.push_back(outputs[t].data());
            }
            for (int t = 0; t < tokens; ++t)
              inputs.push_back(rounding == Rounding::kFloat
                                   ? static_cast<const void*>(copies[t].data())
                                   : static_cast<const void*>(ints[t].get()));
            matmul(format, {matrix.records.get(), matrix.k, begin, groups, rows, rounding, tokens,
                            inputs.data(), y.data()});
            for (int t = 0; t < tokens; ++t) {
              ASSERT_TRUE(outputs[t].intact()) << F::kName << ", rows " << rows << ", token " << t;
              ASSERT_TRUE(outputs[t].written());
            }
            // Coarse here: the digits' own error is up to a percent.
            std::vector<double> expected;
            for (int64_t row = begin * 16; row < rows; ++row) {
              double sum = 0;
              for (int64_t i = 0; i < matrix.k; ++i)
                sum += double{matrix.values[row * matrix.k + i]} * copies[tokens - 1][i];
              expected.push_back(sum);
            }
            double largest = 0, scale = 0;
            for (size_t i = 0; i < expected.size(); ++i)
              largest = std::max(largest, std::abs(y[tokens - 1][i] - expected[i]));
            for (int64_t i = begin * 16 * matrix.k; i < rows * matrix.k; ++i)
              scale = std::max<double>(scale, std::abs(matrix.values[i]));
            ASSERT_LE(largest, scale * matrix.k * (rounding == Rounding::kDigit ? 0.02 : 1e-4))
                << F::kName << ", rounding " << static_cast<int>(rounding);
          }
        }
      }
    }
  });
}

// A token alone, or one of any number: the same bits.
TEST_P(Kernels, MatmulsSumsDoNotDependOnTheirCompany) {
  quant::for_each_format([&]<class F>() {
    const FormatKernels& format = format_kernels(table(), F::kGgufId);
    const TestMatrix<F> matrix(49, F::kValues == 1 ? 1100 : 2, random_);
    constexpr int kTokens = 70;
    const auto x = floats(kTokens * matrix.k);
    for (const auto rounding : {Rounding::kFloat, Rounding::kExact, Rounding::kDigit}) {
      if (F::kGroup == 0 && rounding != Rounding::kFloat) continue;
      const size_t row_bytes = act_row_bytes(matrix.k);
      std::vector<uint8_t> ints(kTokens * row_bytes + 64);
      uint8_t* aligned = ints.data() + (64 - reinterpret_cast<uintptr_t>(ints.data()) % 64) % 64;
      std::vector<const void*> inputs;
      for (int t = 0; t < kTokens; ++t) {
        const float* row = &x[t * matrix.k];
        if (rounding == Rounding::kExact)
          table().quantize_exact(row, 0, matrix.k, aligned + t * row_bytes);
        if (rounding == Rounding::kDigit)
          table().quantize_digit(row, 0, matrix.k, matrix.k, aligned + t * row_bytes);
        inputs.push_back(rounding == Rounding::kFloat
                             ? static_cast<const void*>(row)
                             : static_cast<const void*>(aligned + t * row_bytes));
      }
      const auto product = [&](int first, int count) {
        std::vector<float> out(count * matrix.rows);
        std::vector<float*> y;
        for (int t = 0; t < count; ++t) y.push_back(&out[t * matrix.rows]);
        matmul(format, {matrix.records.get(), matrix.k, 0, (matrix.rows + 15) / 16, matrix.rows,
                        rounding, count, &inputs[first], y.data()});
        return out;
      };
      std::vector<float> alone;
      for (int t = 0; t < kTokens; ++t)
        for (const float value : product(t, 1)) alone.push_back(value);
      for (const int count : {2, 3, 4, 7, 8, 9, 63, 70}) {
        const auto together = product(1 % (kTokens - count + 1), count);
        const float* expected = &alone[1 % (kTokens - count + 1) * matrix.rows];
        ASSERT_EQ(std::memcmp(together.data(), expected, together.size() * sizeof(float)), 0)
            << F::kName << ", rounding " << static_cast<int>(rounding) << ", tokens " << count;
      }
    }
  });
}

// Rows in halves before rows in digits, in one task or in two: the same bits, also where a pass ends
// between them.
TEST_P(Kernels, HalvesAndDigitsOfOneTaskAreThoseOfTwo) {
  quant::for_each_format([&]<class F>() {
    if (F::kGroup == 0) return;
    const FormatKernels& format = format_kernels(table(), F::kGgufId);
    const TestMatrix<F> matrix(49, 2, random_);
    const size_t row_bytes = act_row_bytes(matrix.k);
    const bool is_long = F::kGgufId == quant::Q4_0::kGgufId || F::kGgufId == quant::Q6_K::kGgufId;
    for (const int exact : {1, 9, is_long ? 520 : 64}) {
      const int digits = is_long ? 40 : 6, tokens = exact + digits;
      const auto x = floats(tokens * matrix.k);
      std::vector<uint8_t> ints(tokens * row_bytes + 64);
      uint8_t* aligned = ints.data() + (64 - reinterpret_cast<uintptr_t>(ints.data()) % 64) % 64;
      std::vector<const void*> inputs;
      for (int t = 0; t < tokens; ++t) {
        uint8_t* row = aligned + t * row_bytes;
        if (t < exact)
          table().quantize_exact(&x[t * matrix.k], 0, matrix.k, row);
        else
          table().quantize_digit(&x[t * matrix.k], 0, matrix.k, matrix.k, row);
        inputs.push_back(row);
      }
      std::vector<float> apart(tokens * matrix.rows), together(tokens * matrix.rows, -1.0f);
      const auto multiply = [&](std::vector<float>& out, Rounding rounding, int first, int count,
                                int num_exact) {
        std::vector<float*> y;
        for (int t = 0; t < count; ++t) y.push_back(&out[(first + t) * matrix.rows]);
        MatmulTask task = {matrix.records.get(), matrix.k, 0,     (matrix.rows + 15) / 16,
                           matrix.rows,          rounding, count, &inputs[first],
                           y.data()};
        task.num_exact = num_exact;
        task.next[0] = task.next[1] = matrix.records.get();
        matmul(format, task);
      };
      multiply(apart, Rounding::kExact, 0, exact, 0);
      multiply(apart, Rounding::kDigit, exact, digits, 0);
      multiply(together, Rounding::kDigit, 0, tokens, exact);
      ASSERT_EQ(std::memcmp(apart.data(), together.data(), apart.size() * sizeof(float)), 0)
          << F::kName << ", " << exact << " in halves, " << digits << " in digits";
    }
  });
}

TEST_P(Kernels, TransposedProductAddsTheRowsAskedFor) {
  quant::for_each_format([&]<class F>() {
    const FormatKernels& format = format_kernels(table(), F::kGgufId);
    const TestMatrix<F> matrix(50, F::kValues == 1 ? 37 : 2, random_);
    const auto start = floats(matrix.k);
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 50},
                                     {0, 16},
                                     {16, 32},
                                     {3, 5},
                                     {15, 17},
                                     {40, 50},
                                     {7, 7}}) {
      const auto x = floats(end - begin);
      Guarded y(matrix.k);
      std::copy(start.begin(), start.end(), y.data());
      format.transposed(
          {matrix.records.get(), matrix.k, matrix.rows, begin, end, x.data(), y.data()});
      ASSERT_TRUE(y.intact()) << F::kName;
      std::vector<double> expected(start.begin(), start.end());
      for (int64_t row = begin; row < end; ++row)
        for (int64_t i = 0; i < matrix.k; ++i)
          expected[i] += double{matrix.values[row * matrix.k + i]} * x[row - begin];
      ASSERT_LT(nmse(y.data(), expected), 1e-12) << F::kName << ", rows " << begin << " to " << end;

      if (!format.transposed_halves) continue;
      Guarded rounded(matrix.k);
      std::fill_n(rounded.data(), matrix.k, 0.0f);
      format.transposed_halves(
          {matrix.records.get(), matrix.k, matrix.rows, begin, end, x.data(), rounded.data()}, format);
      ASSERT_TRUE(rounded.intact()) << F::kName;
      for (int64_t i = 0; i < matrix.k; ++i) expected[i] -= start[i];
      if (begin == end)
        ASSERT_EQ(std::count(rounded.data(), rounded.data() + matrix.k, 0.0f), matrix.k);
      else
        ASSERT_LT(nmse(rounded.data(), expected), 1e-8)
            << F::kName << " in halves, rows " << begin << " to " << end;
    }
  });
}

const int64_t kLengths[] = {1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 100, 257};

TEST_P(Kernels, RowWork) {
  for (const int64_t n : kLengths) {
    const auto a = floats(n), b = floats(n), w = floats(n);
    double dot = 0, squares = 0;
    for (int64_t i = 0; i < n; ++i) dot += double{a[i]} * b[i], squares += double{a[i]} * a[i];
    EXPECT_NEAR(table().dot(a.data(), b.data(), n), dot, 1e-5 * n);

    Guarded out(n);
    table().rms_norm(a.data(), w.data(), 1e-5f, n, out.data());
    EXPECT_TRUE(out.intact() && out.written());
    for (int64_t i = 0; i < n; ++i)
      ASSERT_NEAR(out.data()[i], a[i] / std::sqrt(squares / n + 1e-5) * w[i], 1e-5) << n;
    std::vector<float> in_place = a;
    table().rms_norm(in_place.data(), w.data(), 1e-5f, n, in_place.data());
    EXPECT_TRUE(std::equal(in_place.begin(), in_place.end(), out.data()));

    Guarded sum(n);
    std::copy(b.begin(), b.end(), sum.data());
    table().axpy(0.75f, a.data(), n, sum.data());
    EXPECT_TRUE(sum.intact());
    for (int64_t i = 0; i < n; ++i) ASSERT_NEAR(sum.data()[i], b[i] + 0.75 * a[i], 1e-6);
  }
}

TEST_P(Kernels, SwigluFromOneEndToTheOther) {
  for (const int64_t n : kLengths) {
    auto gate = floats(n, 4.0f);
    const auto up = floats(n);
    const float extremes[] = {0.0f, -0.0f, 87.0f, -87.0f, 100.0f, -100.0f, 1e20f, -1e20f, 1e-30f};
    for (int64_t i = 0; i < n && i < 9; ++i) gate[i] = n > 16 ? extremes[i] : gate[i];
    Guarded out(n);
    table().swiglu(gate.data(), up.data(), n, out.data());
    EXPECT_TRUE(out.intact() && out.written());
    for (int64_t i = 0; i < n; ++i) {
      const double exact = double{gate[i]} / (1 + std::exp(-double{gate[i]})) * up[i];
      ASSERT_TRUE(std::isfinite(out.data()[i])) << gate[i];
      ASSERT_NEAR(out.data()[i], exact, 1e-6 * std::abs(exact) + 1e-15) << gate[i];
    }
    table().swiglu(gate.data(), up.data(), n, gate.data());
    EXPECT_TRUE(std::equal(gate.begin(), gate.end(), out.data()));
  }
}

constexpr KvType kTypes[] = {KvType::kF32, KvType::kF16, KvType::kBF16, KvType::kQ8_0};

TEST_P(Kernels, CacheValuesRoundAsTheirTypeSays) {
  for (const KvType type : kTypes) {
    for (int64_t n : {1, 7, 16, 20, 32, 64, 96, 576}) {
      if (type == KvType::kQ8_0 && n % 32 != 0) continue;
      auto x = floats(n);
      if (n >= 32) std::fill_n(x.begin(), 32, 0.0f);  // a block of zeros has scale 0
      const auto bytes = static_cast<size_t>(kv_bytes(type, n));
      std::unique_ptr<uint8_t[]> stored(new uint8_t[bytes]);
      table().store_kv(x.data(), n, type, stored.get());
      Guarded back(n);
      table().load_kv(stored.get(), n, type, back.data());
      EXPECT_TRUE(back.intact() && back.written());
      for (int64_t i = 0; i < n; ++i) {
        const float value = back.data()[i];
        if (type == KvType::kF32) {
          ASSERT_EQ(value, x[i]);
        }
        if (type == KvType::kF16) {
          ASSERT_EQ(value, half_to_float(float_to_half(x[i])));
        }
        if (type == KvType::kBF16) {
          ASSERT_EQ(value, bf16_to_float(float_to_bf16(x[i])));
        }
        if (type == KvType::kQ8_0) {
          float top = 0;
          for (int64_t j = i / 32 * 32; j < i / 32 * 32 + 32; ++j)
            top = std::max(top, std::abs(x[j]));
          ASSERT_NEAR(value, x[i], top * (0.5 / 127 + 0.0005)) << i;
        }
      }
    }
  }
}

// Attention over pages that lie anywhere, for lengths around page boundaries, several query heads
// and every pair of cache types offered; the reference reads the same stored values.
TEST_P(Kernels, AttentionIsSoftmaxOverTheCache) {
  struct Pair {
    KvType k, v;
  };
  for (const Pair types : {Pair{KvType::kF32, KvType::kF32},
                           {KvType::kF16, KvType::kF16},
                           {KvType::kBF16, KvType::kBF16},
                           {KvType::kQ8_0, KvType::kQ8_0},
                           {KvType::kF16, KvType::kQ8_0}}) {
    for (const auto& [k_dim, v_dim] :
         {std::pair{64, 64}, {96, 32}, {5, 3}, {16, 40}, {40, 20}, {130, 70}}) {
      if (types.k == KvType::kQ8_0 && k_dim % 32 != 0) continue;
      if (types.v == KvType::kQ8_0 && v_dim % 32 != 0) continue;
      for (const int64_t length : {1, 2, 63, 64, 65, 128, 200}) {
        for (const int num_q : {1, 3, 17}) {
          const int64_t k_stride = kv_bytes(types.k, k_dim) + 8;  // rows need not be dense
          const int64_t v_stride = kv_bytes(types.v, v_dim);
          const int64_t pages = (length + kKvBlock - 1) / kKvBlock;
          std::vector<std::unique_ptr<uint8_t[]>> memory;
          std::vector<const uint8_t*> k_blocks(pages), v_blocks(pages);
          std::vector<std::vector<float>> keys, values;
          for (int64_t page = 0; page < pages; ++page) {
            const int64_t here = std::min<int64_t>(kKvBlock, length - page * kKvBlock);
            memory.emplace_back(new uint8_t[here * k_stride]);
            k_blocks[page] = memory.back().get();
            memory.emplace_back(new uint8_t[here * v_stride]);
            v_blocks[page] = memory.back().get();
            for (int64_t i = 0; i < here; ++i) {
              auto* k = const_cast<uint8_t*>(k_blocks[page]) + i * k_stride;
              auto* v = const_cast<uint8_t*>(v_blocks[page]) + i * v_stride;
              table().store_kv(floats(k_dim).data(), k_dim, types.k, k);
              table().store_kv(floats(v_dim).data(), v_dim, types.v, v);
              keys.emplace_back(k_dim);
              values.emplace_back(v_dim);
              table().load_kv(k, k_dim, types.k, keys.back().data());
              table().load_kv(v, v_dim, types.v, values.back().data());
            }
          }
          const int64_t q_stride = k_dim + 3, out_stride = v_dim + 2;
          const auto q = floats((num_q - 1) * q_stride + k_dim, 0.5f);
          Guarded out((num_q - 1) * out_stride + v_dim);
          table().attention({q.data(), num_q, q_stride, k_dim, v_dim, k_blocks.data(),
                             v_blocks.data(), k_stride, v_stride, types.k, types.v, length,
                             out.data(), out_stride});
          ASSERT_TRUE(out.intact());
          for (int h = 0; h < num_q; ++h) {
            std::vector<double> weight(length), expected(v_dim, 0.0);
            double top = -INFINITY, sum = 0;
            for (int64_t p = 0; p < length; ++p) {
              weight[p] = 0;
              for (int i = 0; i < k_dim; ++i) weight[p] += double{q[h * q_stride + i]} * keys[p][i];
              top = std::max(top, weight[p]);
            }
            for (double& value : weight) sum += value = std::exp(value - top);
            for (int64_t p = 0; p < length; ++p)
              for (int i = 0; i < v_dim; ++i) expected[i] += weight[p] / sum * values[p][i];
            ASSERT_LT(nmse(out.data() + h * out_stride, expected), 1e-11)
                << "k_dim " << k_dim << ", length " << length << ", head " << h;
            if (h + 1 < num_q) {
              ASSERT_EQ(out.data()[h * out_stride + v_dim], kGuard);
            }
          }
        }
      }
    }
  }
}

// Scores far apart: the running maximum moves, and what it leaves behind vanishes without a NaN.
TEST_P(Kernels, AttentionSurvivesExtremeScores) {
  constexpr int kDim = 16;
  const int64_t length = 130;
  std::vector<float> keys(length * kDim, 0.0f), values(length * kDim);
  for (int64_t p = 0; p < length; ++p) {
    keys[p * kDim] = p == 100 ? 300.0f : p == 20 ? -300.0f : static_cast<float>(p);
    std::fill_n(&values[p * kDim], kDim, static_cast<float>(p));
  }
  std::vector<const uint8_t*> k, v;
  for (int64_t p = 0; p < length; p += kKvBlock) {
    k.push_back(reinterpret_cast<const uint8_t*>(&keys[p * kDim]));
    v.push_back(reinterpret_cast<const uint8_t*>(&values[p * kDim]));
  }
  for (const float scale : {1.0f, -1.0f}) {
    std::vector<float> q(kDim, 0.0f), out(kDim);
    q[0] = scale;
    table().attention({q.data(), 1, kDim, kDim, kDim, k.data(), v.data(), kDim * 4, kDim * 4,
                       KvType::kF32, KvType::kF32, length, out.data(), kDim});
    for (const float value : out) EXPECT_FLOAT_EQ(value, scale > 0 ? 100.0f : 20.0f);
  }
}

// A set that has only some kernels of its own has its parent's for the rest.
TEST(Isas, HaveEveryKernelOfEveryFormat) {
  for (const std::string& name : usable_isas()) {
    const KernelTable& table = kernels_of(name);
    EXPECT_EQ(table.name, name);
    quant::for_each_format([&]<class F>() {
      const FormatKernels& format = format_kernels(table, F::kGgufId);
      EXPECT_EQ(format.values, F::kValues) << name;
      EXPECT_EQ(format.group, F::kGroup);
      EXPECT_EQ(format.record_bytes, static_cast<int64_t>(quant::R16<F>::kRecordBytes));
      EXPECT_TRUE(format.floats && format.transposed) << name << ' ' << F::kName;
      EXPECT_TRUE(F::kGroup == 0 || (format.many && format.unpack)) << name << ' ' << F::kName;
      EXPECT_TRUE(!format.few_for_all || format.few) << name << ' ' << F::kName;
    });
    EXPECT_TRUE(table.quantize_exact && table.quantize_digit && table.rms_norm && table.swiglu &&
                table.axpy && table.dot && table.softmax && table.sigmoid && table.block_max &&
                table.block_exp_sum && table.attention && table.attend_tile && table.fold_tiles &&
                table.score_tile && table.put_tile && table.get_tile && table.round_int16 &&
                table.store_kv && table.load_kv && table.limits.read)
        << name;
  }
}

// Other instructions, the same integers and floats in the same order: not one bit differs from the
// parent's, however many tokens come together.
TEST(Isas, WithAParentComputeItsBits) {
  std::mt19937 random(29);
  std::normal_distribution<float> normal;
  for (const auto& [name, parent] : {std::pair<std::string, std::string>{"avx512bf16", "avx512"},
                                     {"amx", "avx512"},
                                     {"amx_emulated", "avx512"},
                                     {"avxvnni", "avx2"},
                                     {"avxvnni_evex", "avx2"}}) {
    const auto usable = usable_isas();
    if (std::find(usable.begin(), usable.end(), name) == usable.end()) continue;
    const KernelTable& table = kernels_of(name);
    const KernelTable& other = kernels_of(parent);
    quant::for_each_format([&]<class F>() {
      if (F::kGroup == 0) return;
      constexpr int64_t kRows = 50, kTokens = 50;
      const TestMatrix<F> matrix(kRows, 512 / F::kValues, random);
      std::vector<std::unique_ptr<uint8_t[]>> ints(kTokens);
      std::vector<const void*> x;
      std::vector<float> row(matrix.k);
      for (const auto rounding : {Rounding::kExact, Rounding::kDigit}) {
        x.clear();
        for (auto& room : ints) {
          for (float& value : row) value = normal(random) + 0.5f;
          row[random() % row.size()] *= 40;
          room.reset(new uint8_t[act_row_bytes(matrix.k)]);
          if (rounding == Rounding::kExact)
            other.quantize_exact(row.data(), 0, matrix.k, room.get());
          else
            other.quantize_digit(row.data(), 0, matrix.k, matrix.k, room.get());
          x.push_back(room.get());
        }
        std::vector<float> expected;
        for (const int tokens : {1, 2, 3, 4, 8, 9, 16, 17, 33, 50}) {
          for (const KernelTable* kernels : {&other, &table}) {
            std::vector<float> y(kTokens * kRows);
            std::vector<float*> out;
            for (int t = 0; t < tokens; ++t) out.push_back(&y[t * kRows]);
            matmul(format_kernels(*kernels, F::kGgufId),
                   {matrix.records.get(), matrix.k, 0, (kRows + 15) / 16, kRows, rounding, tokens,
                    x.data(), out.data()});
            if (kernels == &other)
              expected = y;
            else
              ASSERT_EQ(std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)), 0)
                  << name << ' ' << F::kName << ", " << tokens << " tokens";
          }
        }
      }
    });
  }
}

TEST(Isas, AreNamedAndRefusedByName) {
  EXPECT_STREQ(isa_at(isa_count() - 1).name, "scalar");
  EXPECT_TRUE(isa_at(isa_count() - 1).usable);
  for (int i = 0; i < isa_count(); ++i) {
    const Isa& isa = isa_at(i);
    if (isa.usable) {
      EXPECT_STREQ(kernels_of(isa.name).name, isa.name);
      EXPECT_EQ(isa.missing, nullptr);
    } else {
      EXPECT_THROW(kernels_of(isa.name), InvalidArgument);
      EXPECT_NE(isa.missing, nullptr);
    }
  }
  try {
    kernels_of("sse9");
    FAIL() << "sse9 was accepted";
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("sse9"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("scalar"), std::string::npos);
  }
  EXPECT_THROW(format_kernels(kernels_of("scalar"), 7777), Unsupported);
}

}  // namespace
}  // namespace kt::cpu
