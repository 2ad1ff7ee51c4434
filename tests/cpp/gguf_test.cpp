// The GGUF reader on files built byte by byte here, sound and damaged; the writer against the
// reader.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gguf/cursor.h"
#include "gguf/file.h"
#include "gguf/model_check.h"
#include "gguf/reader.h"
#include "gguf/writer.h"

namespace kt::gguf {
namespace {

// Appends little-endian fields; nothing here checks anything, so every lie can be told.
struct Bytes {
  std::vector<uint8_t> data;

  template <class T>
  Bytes& put(T value) {
    const auto* at = reinterpret_cast<const uint8_t*>(&value);
    data.insert(data.end(), at, at + sizeof value);
    return *this;
  }
  Bytes& raw(std::string_view text) {
    data.insert(data.end(), text.begin(), text.end());
    return *this;
  }
  Bytes& text(std::string_view text) { return put<uint64_t>(text.size()).raw(text); }
  Bytes& header(uint64_t tensors, uint64_t keys, uint32_t version = 3) {
    return raw("GGUF").put(version).put(tensors).put(keys);
  }
  Bytes& u32_key(std::string_view key, uint32_t value) {
    return text(key).put<uint32_t>(4).put(value);
  }
  Bytes& string_key(std::string_view key, std::string_view value) {
    return text(key).put<uint32_t>(8).text(value);
  }
  Bytes& tensor(std::string_view name, std::vector<uint64_t> ne, uint32_t type, uint64_t offset) {
    text(name).put(static_cast<uint32_t>(ne.size()));
    for (const uint64_t n : ne) put(n);
    return put(type).put(offset);
  }
  Bytes& pad(size_t alignment = 32) {
    data.resize((data.size() + alignment - 1) / alignment * alignment);
    return *this;
  }
  Bytes& zeros(size_t count) {
    data.resize(data.size() + count);
    return *this;
  }
};

constexpr uint32_t kF32Id = 0, kQ8Id = 8;

std::string refusal(const Bytes& file) {
  try {
    const Reader reader(file.data, "m.gguf");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

#define EXPECT_REFUSED(file, words)                                              \
  do {                                                                           \
    const std::string message = refusal(file);                                   \
    EXPECT_NE(message.find("m.gguf: "), std::string::npos) << message;           \
    EXPECT_NE(message.find(words), std::string::npos) << "message: " << message; \
  } while (0)

Bytes two_tensors() {
  Bytes file;
  file.header(2, 2).string_key("general.architecture", "llama").u32_key("llama.block_count", 7);
  file.tensor("a", {32, 2}, kQ8Id, 0).tensor("b", {3}, kF32Id, 96).pad();
  return file.zeros(96 + 12);
}

TEST(GgufReader, ReadsKeysAndTensors) {
  const Bytes file = two_tensors();
  const Reader reader(file.data, "m.gguf");
  ASSERT_EQ(reader.tensors().size(), 2u);
  const Tensor* a = reader.find_tensor("a");
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->bytes, 68u);
  EXPECT_EQ(a->ne[0], 32u);
  EXPECT_EQ(a->ne[1], 2u);
  EXPECT_EQ(a->ne[3], 1u);
  EXPECT_STREQ(a->type->name, "q8_0");
  const Tensor* b = reader.find_tensor("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->offset + b->bytes, file.data.size());
  EXPECT_EQ(reader.data(*b).size(), 12u);
  EXPECT_EQ(reader.find_tensor("c"), nullptr);
  const Value* count = reader.find("llama.block_count");
  ASSERT_NE(count, nullptr);
  EXPECT_EQ(load_number<uint64_t>(count->type, count->bytes.data()), 7u);
  EXPECT_EQ(reader.find("llama"), nullptr);
}

TEST(GgufReader, EveryTruncationIsRefused) {
  const Bytes file = two_tensors();
  for (size_t size = 0; size < file.data.size(); ++size) {
    Bytes shorter;
    shorter.data.assign(file.data.begin(), file.data.begin() + static_cast<long>(size));
    EXPECT_NE(refusal(shorter), "") << size;
  }
}

TEST(GgufReader, RefusesLyingCounts) {
  EXPECT_REFUSED(Bytes().header(UINT64_MAX, 0), "18446744073709551615 tensors");
  EXPECT_REFUSED(Bytes().header(0, 1ull << 60), "1152921504606846976 keys");
  EXPECT_REFUSED(Bytes().header(0, 3).u32_key("a", 1).zeros(2), "claims 3 keys");
  EXPECT_REFUSED(Bytes().header(0, 70000).zeros(2000000), "at most 65536");
  EXPECT_REFUSED(Bytes().header(0, 1).put<uint64_t>(UINT64_MAX).zeros(100), "key needs");
  EXPECT_REFUSED(Bytes().header(0, 1).text("k").put<uint32_t>(8).put<uint64_t>(1ull << 40).zeros(9),
                 "string value needs 1099511627776 bytes");
  // 2^61 values of 8 bytes: the size in bytes wraps to 0.
  EXPECT_REFUSED(
      Bytes().header(0, 1).text("k").put<uint32_t>(9).put<uint32_t>(10).put(1ull << 61).zeros(64),
      "claims 2305843009213693952 values");
  EXPECT_REFUSED(
      Bytes().header(0, 1).text("k").put<uint32_t>(9).put<uint32_t>(8).put(1ull << 61).zeros(64),
      "claims 2305843009213693952 strings");
}

TEST(GgufReader, RefusesBadKeysAndValues) {
  EXPECT_REFUSED(Bytes().header(0, 1).u32_key("", 1).zeros(8), "key is empty");
  EXPECT_REFUSED(Bytes().header(0, 1).u32_key("a\xff", 1), "'a\\xff' is not printable UTF-8");
  EXPECT_REFUSED(Bytes().header(0, 1).u32_key("a\n", 1), "'a\\x0a'");
  EXPECT_REFUSED(Bytes().header(0, 1).text("k").put<uint32_t>(13).zeros(8), "value type 13");
  EXPECT_REFUSED(Bytes().header(0, 1).text("k").put<uint32_t>(7).put<uint8_t>(2), "boolean 2");
  EXPECT_REFUSED(Bytes().header(0, 2).u32_key("k", 1).u32_key("k", 2), "'k' occurs twice");
  EXPECT_REFUSED(Bytes().header(0, 1).text("k").put<uint32_t>(9).put<uint32_t>(9).zeros(16),
                 "array of arrays");
  for (const uint32_t alignment : {0u, 3u, 4u, 48u, 0x80000000u}) {
    EXPECT_REFUSED(Bytes().header(0, 1).u32_key("general.alignment", alignment),
                   "power of two from 8");
  }
  EXPECT_REFUSED(
      Bytes().header(0, 1).text("general.alignment").put<uint32_t>(10).put<uint64_t>(1ull << 40),
      "must be u32");
}

TEST(GgufReader, RefusesBadTensors) {
  const auto one = [](std::vector<uint64_t> ne, uint32_t type, uint64_t offset) {
    return Bytes().header(1, 0).tensor("t", std::move(ne), type, offset).pad().zeros(4096);
  };
  EXPECT_EQ(refusal(one({32}, kF32Id, 0)), "");
  EXPECT_REFUSED(one({}, kF32Id, 0), "0 dimensions");
  EXPECT_REFUSED(one({1, 1, 1, 1, 1}, kF32Id, 0), "5 dimensions");
  EXPECT_REFUSED(one({32, 0}, kF32Id, 0), "dimension 1 = 0");
  EXPECT_REFUSED(one({1ull << 32, 1ull << 32}, kF32Id, 0), "makes no tensor");
  EXPECT_REFUSED(one({1ull << 62}, kF32Id, 0), "overflows");
  EXPECT_REFUSED(one({1ull << 40}, kF32Id, 0), "ends at byte");
  EXPECT_REFUSED(one({33}, kQ8Id, 0), "multiple of 32");
  EXPECT_REFUSED(one({32}, 9999, 0), "type id 9999");
  EXPECT_REFUSED(one({32}, 139, 0), "has type iq4_k: only ik_llama.cpp");
  EXPECT_REFUSED(one({32}, UINT32_MAX, 0), "type id 4294967295");
  EXPECT_REFUSED(one({32}, kF32Id, 16), "multiple of the alignment");
  EXPECT_REFUSED(one({32}, kF32Id, UINT64_MAX - 31), "overflows");
  EXPECT_REFUSED(one({32}, kF32Id, 8192), "ends at byte");
  EXPECT_REFUSED(Bytes().header(1, 0).tensor("", {32}, kF32Id, 0).pad().zeros(128), "is empty");
  EXPECT_REFUSED(Bytes().header(1, 0).tensor("a\x80", {1}, kF32Id, 0).pad().zeros(128), "UTF-8");
  EXPECT_REFUSED(
      Bytes().header(1, 0).tensor(std::string(300, 'a'), {1}, kF32Id, 0).pad().zeros(128), "255");
  EXPECT_REFUSED(
      Bytes().header(2, 0).tensor("t", {8}, 0, 0).tensor("t", {8}, 0, 32).pad().zeros(64), "twice");
  EXPECT_REFUSED(
      Bytes().header(2, 0).tensor("s", {16}, 0, 32).tensor("t", {16}, 0, 0).pad().zeros(128),
      "'t' and 's' overlap");
}

TEST(GgufReader, NamesWhatIsNoGguf) {
  EXPECT_REFUSED(Bytes(), "is empty");
  EXPECT_REFUSED(Bytes().raw("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull");
  EXPECT_REFUSED(Bytes().raw("\n <!DOCTYPE html><html>"), "web page");
  EXPECT_REFUSED(Bytes().raw("PK\x03\x04 data.pkl"), "ZIP");
  EXPECT_REFUSED(Bytes().put<uint64_t>(100).raw("{\"__metadata__\""), "safetensors");
  EXPECT_REFUSED(Bytes().raw("RIFFx"), "starts with 'RIFFx'");
  EXPECT_REFUSED(Bytes().header(0, 0, 1), "version 1");
  EXPECT_REFUSED(Bytes().header(0, 0, 0x03000000), "big-endian");
  EXPECT_REFUSED(Bytes().header(0, 0, 4), "version is 4");
  EXPECT_REFUSED(Bytes().header(0, 0, 0), "version is 0");
  EXPECT_EQ(refusal(Bytes().header(0, 0, 2)), "");
}

TEST(GgufCursor, KnowsUtf8) {
  for (const char* good :
       {"", "a", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "\xF4\x8F\xBF\xBF"}) {
    EXPECT_TRUE(is_utf8(good)) << quoted(good);
  }
  for (const char* bad : {"\x80", "\xC0\x80", "\xC1\xBF", "\xC3", "\xE0\x80\x80", "\xED\xA0\x80",
                          "\xF0\x80\x80\x80", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xE2\x82"}) {
    EXPECT_FALSE(is_utf8(bad)) << quoted(bad);
  }
}

// ---- files on disk ----

class GgufFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "kt-gguf-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string save(const std::string& name, const Bytes& file) {
    const std::string path = folder_ / name;
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(file.data.data()),
               static_cast<long>(file.data.size()));
    return path;
  }

  // Part i of n with one tensor of its own.
  static Bytes part(uint16_t i, uint16_t n, std::string_view tensor, int32_t total) {
    Bytes file;
    file.header(1, i == 0 ? 4 : 3);
    if (i == 0) file.string_key("general.architecture", "llama");
    file.text("split.no").put<uint32_t>(2).put(i);
    file.text("split.count").put<uint32_t>(2).put(n);
    file.text("split.tensors.count").put<uint32_t>(5).put(total);
    return file.tensor(tensor, {8}, kF32Id, 0).pad().zeros(32);
  }

  std::string open_error(const std::vector<std::string>& paths) {
    try {
      const File file(paths);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  std::filesystem::path folder_;
};

TEST_F(GgufFiles, SplitModelsAreOneSetOfTensors) {
  const auto a = save("a", part(0, 2, "x", 2)), b = save("b", part(1, 2, "y", 2));
  const File file({a, b});
  EXPECT_EQ(file.tensors().size(), 2u);
  EXPECT_EQ(file.tensor("y").part, 1u);
  EXPECT_EQ(file.data(file.tensor("y")).size(), 32u);
  EXPECT_EQ(find_string(file, "general.architecture"), "llama");
  EXPECT_EQ(find_int(file, "split.count", 0, 10), 2);
  EXPECT_THROW(file.tensor("z"), InvalidArgument);
}

TEST_F(GgufFiles, PartsThatDoNotBelongTogetherAreRefused) {
  const auto a = save("a", part(0, 2, "x", 2)), b = save("b", part(1, 2, "y", 2));
  EXPECT_NE(open_error({a}).find("split into 2 files, 1 was given"), std::string::npos);
  EXPECT_NE(open_error({b, a}).find("says it is part 2 of 2"), std::string::npos);
  EXPECT_NE(open_error({a, a}).find("says it is part 1 of 2"), std::string::npos);
  EXPECT_NE(open_error({a, b, b}).find("split into 2 files, 3 were given"), std::string::npos);
  const auto same = save("same", part(1, 2, "x", 2));
  EXPECT_NE(open_error({a, same}).find("'x' is in two parts"), std::string::npos);
  const auto total = save("total", part(1, 2, "y", 3));
  EXPECT_NE(open_error({a, total}).find("has 3 tensors, its 2 files have 2"), std::string::npos);
  Bytes other;
  other.header(1, 3).string_key("general.architecture", "qwen2");
  other.text("split.no").put<uint32_t>(2).put<uint16_t>(1);
  other.text("split.count").put<uint32_t>(2).put<uint16_t>(2);
  other.tensor("y", {8}, kF32Id, 0).pad().zeros(32);
  EXPECT_NE(open_error({a, save("other", other)}).find("different models"), std::string::npos);
  EXPECT_NE(open_error({save("plain", two_tensors()), a}).find("0 files"), std::string::npos);
}

TEST_F(GgufFiles, WhatTheSystemRefusesIsNamed) {
  EXPECT_NE(open_error({folder_ / "none"}).find("No such file"), std::string::npos);
  EXPECT_NE(open_error({folder_}).find("not a regular file"), std::string::npos);
  EXPECT_NE(open_error({save("empty", Bytes())}).find("is empty"), std::string::npos);
}

TEST_F(GgufFiles, WriterAndReaderAgree) {
  const std::string path = folder_ / "w.gguf";
  std::vector<uint8_t> data(68);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<uint8_t>(i);
  const std::vector<uint64_t> ne{32, 2}, vector_ne{2};
  {
    Writer out(path, 64);
    const float number = 1.5f;
    out.add("x.f", {.type = ValueType::kF32,
                    .element = ValueType::kF32,
                    .count = 1,
                    .bytes = {reinterpret_cast<const uint8_t*>(&number), 4}});
    out.add_tensor("q", kQ8Id, ne);
    out.add_tensor("v", kF32Id, vector_ne);
    out.write(std::span(data).first(5));
    out.write(std::span(data).subspan(5));
    EXPECT_FALSE(std::filesystem::exists(path));
    out.write(std::span(data).first(8));
    out.finish();
  }
  const File file({path});
  EXPECT_EQ(file.part(0).alignment(), 64u);
  EXPECT_EQ(find_float(file, "x.f", 0, 2), 1.5);
  EXPECT_EQ(file.tensor("v").tensor->offset % 64, 0u);
  const auto read = file.data(file.tensor("q"));
  EXPECT_TRUE(std::equal(read.begin(), read.end(), data.begin(), data.end()));
  // Copying every key and tensor gives the same bytes again.
  const std::string again = folder_ / "again.gguf";
  Writer copy(again, 64);
  for (const Key& key : file.keys()) {
    if (key.name != "general.alignment") copy.add(key.name, key.value);
  }
  copy.add_tensor("q", kQ8Id, ne);
  copy.add_tensor("v", kF32Id, vector_ne);
  for (const TensorRef& ref : file.tensors()) copy.write(file.data(ref));
  copy.finish();
  const File second({again});
  EXPECT_TRUE(std::ranges::equal(file.part(0).bytes(), second.part(0).bytes()));
}

TEST_F(GgufFiles, AnUnfinishedWriterLeavesNothing) {
  const std::string path = folder_ / "w.gguf";
  const std::vector<uint64_t> ne{8};
  {
    Writer out(path);
    out.add_tensor("v", kF32Id, ne);
    EXPECT_THROW(out.add_tensor("v", kF32Id, ne), InvalidArgument);
    EXPECT_THROW(out.finish(), InvalidArgument);
    EXPECT_THROW(out.write(std::vector<uint8_t>(33)), InvalidArgument);
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
  EXPECT_THROW(Writer(path, 3), InvalidArgument);
  EXPECT_THROW(Writer(folder_ / "no" / "w.gguf"), SystemError);
  Writer out(path);
  const std::vector<uint64_t> odd{33}, none{}, zero{0}, huge{1ull << 62, 4};
  EXPECT_THROW(out.add_tensor("q", kQ8Id, odd), InvalidArgument);
  EXPECT_THROW(out.add_tensor("q", kQ8Id, none), InvalidArgument);
  EXPECT_THROW(out.add_tensor("q", kQ8Id, zero), InvalidArgument);
  EXPECT_THROW(out.add_tensor("q", kF32Id, huge), InvalidArgument);
  EXPECT_THROW(out.add_tensor("q", 9999, ne), Unsupported);
  EXPECT_THROW(out.add("", Value{}), InvalidArgument);
  EXPECT_THROW(out.add("k", Value{}), InvalidArgument);  // a u8 without its byte
}

}  // namespace
}  // namespace kt::gguf
