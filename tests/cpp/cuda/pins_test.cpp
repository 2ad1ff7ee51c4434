// Which host memory is pinned, what happens where it cannot be, and that all of it is given back.
#include "cuda/model/pins.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/os.h"
#include "cuda/model/staging.h"

namespace kt::cuda {
namespace {

/// Writes down what is pinned; some of it is refused.
struct PinningMemory : Memory {
  std::map<const void*, size_t> pinned;
  std::set<const void*> refused;
  const void* fatal = nullptr;
  int asked = 0;
  size_t pinned_at_finish = 0;

  void* device(size_t) override { return nullptr; }
  void* mapped(size_t) override { return nullptr; }
  void upload(void*, const void*, size_t) override {}
  std::string pin(const void* at, size_t bytes) override {
    ++asked;
    if (at == fatal) throw Error("the driver is gone");
    if (refused.count(at)) return "out of memory";
    pinned[at] = bytes;
    return {};
  }
  void unpin(const void* at) noexcept override { pinned.erase(at); }
  size_t prepare_copies(bool) override { return 0; }
  void bring(const std::vector<Transfer>&, int) override {}
  void arrived(int, void*) override {}
  void release(int, void*) override {}
  void finish_copies() noexcept override { pinned_at_finish = pinned.size(); }
  void finish(void*) override {}
  void copy(void*, const void*, size_t) override {}
};

/// Eight pages, of which each second one has a piece in it.
struct Pieces {
  size_t page = os::page_size();
  std::vector<uint8_t> memory = std::vector<uint8_t>(9 * page);
  const uint8_t* first =
      memory.data() + (page - reinterpret_cast<uintptr_t>(memory.data()) % page) % page;
  const uint8_t* at(int index) const { return first + index * page; }
  std::vector<HostRange> apart() const {
    return {{at(0) + 8, 16}, {at(2), page}, {at(4) + 1, page - 1}, {at(6), 1}};
  }
};

TEST(Pins, PiecesBecomeWholePages) {
  const Pieces p;
  const auto got = whole_pages({{p.at(3), 5}, {p.at(0) + 8, p.page}, {p.at(5), p.page},
                                {p.at(0) + 1, 2}, {p.at(2), p.page}}, p.page);
  ASSERT_EQ(got.size(), 4u);  // 0 and 1; 2; 3; 5
  EXPECT_EQ(got[0].at, p.at(0));
  EXPECT_EQ(got[0].bytes, 2 * p.page);
  EXPECT_EQ(got[1].at, p.at(2));
  EXPECT_EQ(got[1].bytes, p.page);
  EXPECT_EQ(got[2].at, p.at(3));
  EXPECT_EQ(got[3].at, p.at(5));
}

TEST(Pins, EverythingIsPinnedAndGivenBack) {
  const Pieces p;
  PinningMemory memory;
  {
    const Pins pins(memory, p.apart(), SIZE_MAX);
    EXPECT_EQ(pins.report().asked, 4 * p.page);
    EXPECT_EQ(pins.report().pinned, 4 * p.page);
    EXPECT_EQ(pins.report().why, std::string());
    EXPECT_EQ(memory.pinned.size(), 4u);
    for (const HostRange& piece : p.apart()) EXPECT_TRUE(pins.has(piece.at, piece.bytes));
    EXPECT_FALSE(pins.has(p.at(0) + 8, p.page));  // beyond the page
    EXPECT_FALSE(pins.has(p.at(1), 1));
    EXPECT_FALSE(pins.has(p.first - 1, 1));
  }
  EXPECT_EQ(memory.pinned.size(), 0u);
  EXPECT_EQ(memory.pinned_at_finish, 4u);  // while copies were awaited
}

TEST(Pins, WhatIsRefusedIsLeftOutAndNamed) {
  const Pieces p;
  PinningMemory memory;
  memory.refused = {p.at(2)};
  {
    const Pins pins(memory, p.apart(), SIZE_MAX);
    EXPECT_EQ(pins.report().pinned, 3 * p.page);
    EXPECT_NE(pins.report().why.find("out of memory"), std::string::npos);
    EXPECT_NE(pins.report().why.find(std::to_string(p.page) + " bytes"), std::string::npos);
    EXPECT_FALSE(pins.has(p.at(2), p.page));
    EXPECT_TRUE(pins.has(p.at(4) + 1, p.page - 1));
  }
  EXPECT_EQ(memory.pinned.size(), 0u);
}

TEST(Pins, AfterAFewRefusalsItEnds) {
  const Pieces p;
  std::vector<uint8_t> memory_of_many(24 * p.page);
  std::vector<HostRange> many;
  for (int i = 0; i < 12; ++i) many.push_back({memory_of_many.data() + 2 * i * p.page, 1});
  PinningMemory memory;
  for (const HostRange& range : whole_pages(many, p.page)) memory.refused.insert(range.at);
  const Pins pins(memory, many, SIZE_MAX);
  EXPECT_EQ(memory.asked, Pins::kMostRefusals);
  EXPECT_EQ(pins.report().pinned, 0u);
}

TEST(Pins, ALimitIsKeptAndNamed) {
  const Pieces p;
  PinningMemory memory;
  const Pins two(memory, p.apart(), 2 * p.page + 1);
  EXPECT_EQ(two.report().pinned, 2 * p.page);
  EXPECT_NE(two.report().why.find("KT_PIN_LIMIT"), std::string::npos);
  PinningMemory untouched;
  const Pins none(untouched, p.apart(), 0);
  EXPECT_EQ(untouched.asked, 0);
}

TEST(Pins, AnExceptionUnwindsWhatWasPinned) {
  const Pieces p;
  PinningMemory memory;
  memory.fatal = p.at(4);
  EXPECT_THROW(Pins(memory, p.apart(), SIZE_MAX), Error);
  EXPECT_EQ(memory.asked, 3);
  EXPECT_EQ(memory.pinned.size(), 0u);
}

/// Sends as late as it may: when somebody waits for it.
struct LateQueue : CopyQueue {
  struct Sent {
    void* to;
    const void* from;
    size_t bytes;
  };
  std::vector<Sent> all;
  size_t done = 0;
  std::map<int, size_t> marks;
  void send(void* to, const void* from, size_t bytes) override { all.push_back({to, from, bytes}); }
  void mark(int slot) override { marks[slot] = all.size(); }
  void wait(int slot) override { run(marks[slot]); }
  void run(size_t count) {
    for (; done < count; ++done) std::memcpy(all[done].to, all[done].from, all[done].bytes);
  }
};

TEST(Staging, ASlotIsUsedAgainWhenItsCopyIsDone) {
  std::vector<uint8_t> from(1000), to(1000), ring(3 * 64);
  for (size_t i = 0; i < from.size(); ++i) from[i] = uint8_t(i * 7 + i / 64);
  const std::vector<uint8_t> expected = from;
  LateQueue queue;
  Staging staging(queue, ring.data(), 3, 64);
  staging.copy(to.data(), from.data(), 700);
  staging.copy(to.data() + 700, from.data() + 700, 300);
  std::fill(from.begin(), from.end(), uint8_t{0});  // it may go
  EXPECT_LT(queue.done, queue.all.size());          // the last ones are still on their way
  queue.run(queue.all.size());
  EXPECT_EQ(to, expected);
}

}  // namespace
}  // namespace kt::cuda
