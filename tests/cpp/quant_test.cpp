// Every format of the list: its constants, its integer view against its floats, R16 and back.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <set>
#include <vector>

#include "quant/convert.h"
#include "quant/formats.h"
#include "quant/r16.h"

namespace kt::quant {
namespace {

template <class List>
struct ToGtest;
template <class... Fs>
struct ToGtest<TypeList<Fs...>> {
  using Types = ::testing::Types<Fs...>;
};

template <class F>
class QuantFormat : public ::testing::Test {
 protected:
  using Block = typename F::Block;

  // A block of random bytes.
  Block random_block() {
    Block block;
    auto* bytes = reinterpret_cast<uint8_t*>(&block);
    for (size_t i = 0; i < sizeof block; ++i) bytes[i] = static_cast<uint8_t>(random_());
    return block;
  }

  std::mt19937 random_{F::kGgufId + 1};
};

struct FormatName {
  template <class F>
  static std::string GetName(int) {
    return F::kName;
  }
};
TYPED_TEST_SUITE(QuantFormat, ToGtest<Formats>::Types, FormatName);

// r16.h weaves whole words; what is left over must be one half-precision scale or exponent byte.
TYPED_TEST(QuantFormat, ConstantsAgree) {
  using F = TypeParam;
  static_assert(F::kGroup == 0 || F::kGroup == 16 || F::kGroup == 32);
  if constexpr (F::kGroup != 0) {
    static_assert(F::kValues % F::kGroup == 0);
    static_assert(F::kOffset >= 0 && F::kOffset <= F::kMaxU && F::kMaxU <= 255);
    static_assert(!F::kHasMin || F::kOffset == 0);
    static_assert(R16<F>::kHead <= 2);
    static_assert(R16<F>::kHead == 0 || R16<F>::kHeadOffset + R16<F>::kHead ==
                                            (HeadAtEnd<F> ? sizeof(typename F::Block)
                                                          : R16<F>::kHead));
  }
  const FormatInfo* info = find_format(F::kGgufId);
  ASSERT_NE(info, nullptr);
  EXPECT_STREQ(info->name, F::kName);
  EXPECT_EQ(info->bytes_per_block, sizeof(typename F::Block));
  EXPECT_EQ(format_id(F::kName), F::kGgufId);
}

// Widening a block into the middle of a guarded buffer touches nothing outside of it.
TYPED_TEST(QuantFormat, UnpackWritesExactlyItsValues) {
  using F = TypeParam;
  const float guard = -123456.0f;
  std::vector<float> out(F::kValues + 2, guard);
  for (int round = 0; round < 50; ++round) {
    unpack(this->random_block(), out.data() + 1);
    ASSERT_EQ(out.front(), guard);
    ASSERT_EQ(out.back(), guard);
  }
}

TYPED_TEST(QuantFormat, IntegersStayInRange) {
  using F = TypeParam;
  if constexpr (F::kGroup == 0) {
    EXPECT_THROW(integer_view(F::kGgufId, {}), Unsupported);
  } else {
    constexpr int kGroups = F::kValues / F::kGroup;
    int largest = 0;
    for (int round = 0; round < 2000; ++round) {
      const auto block = this->random_block();
      uint8_t u[F::kValues];
      float scale[kGroups], min[kGroups];
      unpack_ints(block, u, scale, min);
      for (int i = 0; i < F::kValues; ++i) {
        ASSERT_LE(u[i], F::kMaxU);
        largest = std::max<int>(largest, u[i]);
      }
    }
    EXPECT_EQ(largest, F::kMaxU);  // the bound is tight
  }
}

TYPED_TEST(QuantFormat, R16RoundTrip) {
  using F = TypeParam;
  std::vector<uint8_t> record(R16<F>::kRecordBytes, 0xEE);
  std::vector<typename F::Block> rows;
  for (int row = 0; row < R16<F>::kRows; ++row) {
    rows.push_back(this->random_block());
    r16_put<F>(rows.back(), row, record.data());
  }
  for (int row = 0; row < R16<F>::kRows; ++row) {
    typename F::Block block;
    r16_get<F>(record.data(), row, &block);
    EXPECT_EQ(std::memcmp(&block, &rows[row], sizeof block), 0) << "row " << row;
  }
  // No byte is lost or written twice: sorted, the record is its rows' bytes.
  std::multiset<uint8_t> woven(record.begin(), record.end());
  std::multiset<uint8_t> original;
  for (const auto& block : rows) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(&block);
    original.insert(bytes, bytes + sizeof block);
  }
  EXPECT_EQ(woven, original);
}

TYPED_TEST(QuantFormat, WholeMatrixThroughR16) {
  using F = TypeParam;
  for (const size_t rows : {1, 15, 16, 17, 33}) {
    const size_t blocks = 3;
    std::vector<uint8_t> data;
    for (size_t i = 0; i < rows * blocks; ++i) {
      const auto block = this->random_block();
      const auto* bytes = reinterpret_cast<const uint8_t*>(&block);
      data.insert(data.end(), bytes, bytes + sizeof block);
    }
    std::vector<uint8_t> records(r16_bytes(F::kGgufId, data.size(), rows));
    EXPECT_EQ(records.size(), (rows + 15) / 16 * 16 * blocks * sizeof(typename F::Block));
    r16_pack(F::kGgufId, data, rows, records);
    std::vector<uint8_t> back(data.size());
    r16_unpack(F::kGgufId, records, rows, back);
    EXPECT_EQ(back, data);
  }
}

TEST(QuantFormats, NamesAndIdsAreUnique) {
  std::set<std::string> names;
  std::set<int> ids;
  size_t count = 0;
  for_each_format([&]<class F>() {
    names.insert(F::kName);
    ids.insert(F::kGgufId);
    ++count;
  });
  EXPECT_EQ(names.size(), count);
  EXPECT_EQ(ids.size(), count);
}

TEST(QuantFormats, UnknownOnesAreRefusedByWhatWasAsked) {
  EXPECT_EQ(find_format(7777), nullptr);
  EXPECT_THROW(value_count(7777, 0), Unsupported);
  try {
    format_id("q9_z");
    FAIL() << "q9_z was accepted";
  } catch (const Unsupported& error) {
    EXPECT_NE(std::string(error.what()).find("q9_z"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("q4_1"), std::string::npos);
  }
}

TEST(QuantFormats, RefusedOnesAreToldByName) {
  EXPECT_EQ(refused_format(Q4_1::kGgufId), nullptr);
  EXPECT_EQ(refused_format(7777), nullptr);
  std::set<int> ids;
  for (const RefusedFormat* row = refused_formats(); row->name; ++row) {
    EXPECT_EQ(find_format(row->gguf_id), nullptr) << row->name;
    EXPECT_TRUE(ids.insert(row->gguf_id).second) << row->name;
  }
  try {
    value_count(144, 0);
    FAIL() << "iq4_ks was accepted";
  } catch (const Unsupported& error) {
    EXPECT_NE(std::string(error.what()).find("iq4_ks: only ik_llama.cpp"), std::string::npos);
  }
}

TEST(QuantFormats, PartialBlocksAreRefused) {
  std::vector<uint8_t> data(19);
  std::vector<float> out(32);
  EXPECT_THROW(value_count(Q4_1::kGgufId, data.size()), InvalidArgument);
  EXPECT_THROW(dequantize(Q4_1::kGgufId, data, out), InvalidArgument);
  EXPECT_THROW(r16_bytes(Q4_1::kGgufId, 40, 3), InvalidArgument);
  EXPECT_THROW(r16_bytes(Q4_1::kGgufId, 40, 0), InvalidArgument);
}

TEST(QuantScales, SixBitPackingIsItsOwnInverse) {
  std::mt19937 random(7);
  for (int round = 0; round < 1000; ++round) {
    uint8_t s[8], t[8], packed[12], s2[8], t2[8];
    for (int j = 0; j < 8; ++j) s[j] = random() % 64, t[j] = random() % 64;
    pack_k_scales(s, t, packed);
    unpack_k_scales(packed, s2, t2);
    EXPECT_EQ(std::memcmp(s, s2, 8), 0);
    EXPECT_EQ(std::memcmp(t, t2, 8), 0);
  }
}

}  // namespace
}  // namespace kt::quant
