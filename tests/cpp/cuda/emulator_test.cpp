// The emulation itself: each primitive against what the CUDA and PTX manuals say it does, and each
// kind of mistake it is there to find.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "cuda/common/device.h"

namespace kt::cuda {
namespace {

using emulated::Buffer;
using emulated::EmulationError;
using emulated::Order;

/// Runs a kernel given as a lambda over nothing but captured buffers.
template <class Body>
void run(const LaunchShape& shape, Body body) {
  emulated::run_grid("a test", shape, body);
}

template <class Body>
std::string error_of(const LaunchShape& shape, Body body) {
  try {
    run(shape, body);
  } catch (const EmulationError& error) {
    return error.what();
  }
  return "no error";
}

struct EachOrder : testing::TestWithParam<Order> {
  void SetUp() override { emulated::options().order = GetParam(); }
  void TearDown() override { emulated::options() = {}; }
};
INSTANTIATE_TEST_SUITE_P(Emulator, EachOrder,
                         testing::Values(Order::kForward, Order::kReverse, Order::kShuffled));

TEST_P(EachOrder, BlocksSumThroughSharedMemory) {
  const int blocks = 3, threads = 96;
  std::vector<float> in(blocks * threads);
  for (size_t i = 0; i < in.size(); ++i) in[i] = float(i * i % 17);
  Buffer<float> x(in), sums(blocks);
  run({.grid_x = 3, .threads = 96, .shared_bytes = 96 * 4}, [&] {
    const Shared<float> s = shared_at<float>(0);
    s[thread_id()] = Global<const float>(x.data())[block_x() * 96 + thread_id()];
    sync();
    for (unsigned step = 48; step >= 3; step /= 2) {
      if (thread_id() < step) s[thread_id()] += s[thread_id() + step];
      sync();
    }
    if (thread_id() == 0)
      Global<float>(sums.data())[block_x()] = float(s[0]) + float(s[1]) + float(s[2]);
  });
  const std::vector<float> got = sums.values();
  for (int b = 0; b < blocks; ++b) {
    float expected = 0;
    for (int t = 0; t < threads; ++t) expected += in[b * threads + t];
    EXPECT_EQ(got[b], expected);
  }
}

TEST_P(EachOrder, ShufflesAndBallots) {
  Buffer<int> out(32 * 4);
  Buffer<uint32_t> votes(32);
  run({}, [&] {
    const int lane = lane_id();
    const Global<int> y(out.data());
    y[lane] = shuffle(10 * lane, 31 - lane);
    y[32 + lane] = shuffle_xor(lane, 5u);
    y[64 + lane] = shuffle_up(lane, 3u);
    float sum = float(lane);
    for (unsigned mask = 16; mask; mask /= 2) sum += shuffle_xor(sum, mask);
    y[96 + lane] = int(sum);
    Global<uint32_t>(votes.data())[lane] = ballot(lane % 3 == 0);
  });
  const std::vector<int> got = out.values();
  uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= uint32_t{lane % 3 == 0} << lane;
  for (int lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(got[lane], 10 * (31 - lane));
    EXPECT_EQ(got[32 + lane], lane ^ 5);
    EXPECT_EQ(got[64 + lane], lane < 3 ? lane : lane - 3);
    EXPECT_EQ(got[96 + lane], 31 * 32 / 2);
    EXPECT_EQ(votes.values()[lane], bits);
  }
}

template <class T>
void check_matrix_product() {
  std::mt19937 random(5);
  std::vector<T> a(16 * 16), b(8 * 16);  // A row-major, B as [n, k]
  std::uniform_real_distribution<float> uniform(-2, 2);
  for (T& v : a) v = from_float<T>(uniform(random));
  for (T& v : b) v = from_float<T>(uniform(random));
  Buffer<T> left(a), right(b);
  Buffer<float> out(16 * 8);
  run({.shared_bytes = 1024}, [&] {
    // Both through shared memory and ldmatrix, as the kernels do: B lies as [n, k], which is what a
    // column-major operand wants untransposed.
    const int lane = lane_id();
    const Shared<T> as = shared_at<T>(0), bs = shared_at<T>(512);
    for (int i = lane; i < 256; i += 32) as[i] = Global<const T>(left.data())[i];
    for (int i = lane; i < 128; i += 32) bs[i] = Global<const T>(right.data())[i];
    sync_warp();
    const Words4 wa = load_matrix4(as + (lane % 16 * 16 + lane / 16 * 8));
    const Words4 wb = load_matrix4(bs + (lane % 8 * 16 + lane / 8 % 2 * 8));
    FragmentD d{{1, 1, 1, 1}};
    mma<T>(d, {{wa.x[0], wa.x[1], wa.x[2], wa.x[3]}}, {{wb.x[0], wb.x[1]}});
    for (int i = 0; i < 4; ++i)
      Global<float>(out.data())[(lane / 4 + i / 2 * 8) * 8 + 2 * (lane % 4) + i % 2] = d.x[i];
  });
  const std::vector<float> got = out.values();
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      double expected = 1;
      for (int k = 0; k < 16; ++k)
        expected += double(to_float(a[row * 16 + k])) * to_float(b[column * 16 + k]);
      EXPECT_NEAR(got[row * 8 + column], expected, 2e-5);
    }
  }
}

TEST_P(EachOrder, TensorCoresMultiply) {
  check_matrix_product<half_t>();
  check_matrix_product<bf16_t>();
}

TEST_P(EachOrder, TransposedLoadGivesTheSecondOperandFromRowMajor) {
  std::vector<half_t> v(64 * 4);
  for (size_t i = 0; i < v.size(); ++i) v[i] = from_float<half_t>(float(i));
  Buffer<half_t> in(v);
  Buffer<uint32_t> out(128);
  run({.shared_bytes = 512}, [&] {
    const int lane = lane_id();
    const Shared<half_t> s = shared_at<half_t>(0);
    async_copy16(s + lane * 8, Global<const half_t>(in.data()) + lane * 8);
    async_commit();
    async_wait<0>();
    sync_warp();
    const Words4 w = load_matrix4_transposed(s + lane * 8);
    for (int j = 0; j < 4; ++j) Global<uint32_t>(out.data())[lane * 4 + j] = w.x[j];
  });
  const std::vector<uint32_t> got = out.values();
  for (int lane = 0; lane < 32; ++lane) {
    for (int j = 0; j < 4; ++j) {
      const Float2 pair = unpack2<half_t>(got[lane * 4 + j]);
      for (int i = 0; i < 2; ++i)
        EXPECT_EQ(pair.x[i], 64 * j + 8 * (2 * (lane % 4) + i) + lane / 4);
    }
  }
}

TEST(EmulatorArithmetic, Fp8RoundsToNearestEvenOverItsRange) {
  // Every finite code comes back, and every midpoint goes to the even neighbour.
  for (int code = 0; code < 127; ++code) {
    const float value = to_float(fp8_t{uint8_t(code)});
    EXPECT_EQ(from_float<fp8_t>(value).bits, code);
    EXPECT_EQ(from_float<fp8_t>(-value).bits, code | 128);
    if (code == 126) break;
    const float next = to_float(fp8_t{uint8_t(code + 1)});
    EXPECT_GT(next, value);
    EXPECT_EQ(from_float<fp8_t>((value + next) / 2).bits, code % 2 ? code + 1 : code);
  }
  EXPECT_EQ(to_float(fp8_t{126}), 448.0f);
  EXPECT_EQ(from_float<fp8_t>(1e9f).bits, 126);
  EXPECT_TRUE(std::isnan(to_float(fp8_t{127})));
}

TEST(EmulatorArithmetic, BitTricks) {
  EXPECT_EQ((lop3<0xEA>(0x12345678, 0x0F0F0F0F, 0x64006400)),
            (0x12345678 & 0x0F0F0F0F) | 0x64006400u);
  EXPECT_EQ(byte_permute(0x33221100, 0x77665544, 0x7351), 0x77335511u);
  EXPECT_EQ(fma2<half_t>(pack2<half_t>(3, -2), pack2<half_t>(5, 7), pack2<half_t>(1, 0.5f)),
            pack2<half_t>(16, -13.5f));
}

// ---- the mistakes ----

TEST_P(EachOrder, DivergentBarriersAreFound) {
  EXPECT_NE(error_of({.threads = 64},
                     [] {
                       if (thread_id() < 40) sync();
                     })
                .find("divergent barrier"),
            std::string::npos);
  const auto two_places = [] {
    if (thread_id() < 32) {
      sync();
    } else {
      sync();
    }
  };
  EXPECT_NE(error_of({.threads = 64}, two_places).find("divergent barrier"), std::string::npos);
  EXPECT_NE(error_of({},
                     [] {
                       if (lane_id() != 7) shuffle(1, 0u);
                     })
                .find("divergent"),
            std::string::npos);
  EXPECT_NE(error_of({},
                     [] {
                       if (lane_id() == 7) {
                         shuffle(1, 0u);
                       } else {
                         ballot(true);
                       }
                     })
                .find("divergent warp"),
            std::string::npos);
}

TEST(Emulator, ABlockHasTheSharedMemoryOfItsCard) {
  for (const auto& [arch, kib] : {std::pair{75, 64u}, {80, 163u}, {86, 99u}, {90, 227u}}) {
    emulated::options().arch = arch;
    EXPECT_NO_THROW(run({.shared_bytes = kib << 10}, [] {}));
    EXPECT_THROW(run({.shared_bytes = (kib << 10) + 16}, [] {}), Error);
  }
  emulated::options() = {};
}

TEST_P(EachOrder, SharedMemoryMistakesAreFound) {
  const LaunchShape shape{.threads = 64, .shared_bytes = 256};
  EXPECT_NE(error_of(shape, [] { shared_at<float>(0)[thread_id() + 1] = 0; }).find("of 256"),
            std::string::npos);
  EXPECT_NE(error_of(shape,
                     [] {
                       float v = shared_at<float>(0)[thread_id()];
                       (void)v;
                     })
                .find("nobody wrote"),
            std::string::npos);
  EXPECT_NE(error_of(shape, [] { shared_at<Words4>(8)[0] = Words4{}; }).find("aligned"),
            std::string::npos);
  // The barrier left out: between warps, and within a warp.
  const auto neighbour = [](bool barrier, unsigned distance) {
    return [=] {
      shared_at<float>(0)[thread_id()] = 1;
      if (barrier) sync();
      float v = shared_at<float>(0)[(thread_id() + distance) % 64];
      (void)v;
    };
  };
  EXPECT_EQ(error_of(shape, neighbour(true, 32)), "no error");
  EXPECT_NE(error_of(shape, neighbour(false, 32)), "no error");
  EXPECT_NE(error_of(shape, neighbour(false, 1)), "no error");
  // Overwritten while another still reads.
  EXPECT_NE(error_of(shape,
                     [] {
                       shared_at<float>(0)[thread_id()] = 1;
                       sync();
                       float v = shared_at<float>(0)[63 - thread_id()];
                       shared_at<float>(0)[thread_id()] = v;
                     })
                .find("no barrier between"),
            std::string::npos);
  // A warp's own barrier orders its lanes, not others.
  const auto by_warp = [](unsigned mask) {
    return [=] {
      shared_at<float>(0)[thread_id()] = 1;
      sync_warp();
      float v = shared_at<float>(0)[thread_id() ^ mask];
      (void)v;
    };
  };
  EXPECT_EQ(error_of(shape, by_warp(1)), "no error");
  EXPECT_NE(error_of(shape, by_warp(32)), "no error");
}

TEST_P(EachOrder, SharedSumsAreReadBehindABarrier) {
  const LaunchShape shape{.threads = 64, .shared_bytes = 32};
  Buffer<uint64_t> out(4);
  const auto sums = [&](bool zeroed, bool barrier) {
    return [&out, zeroed, barrier] {
      const Shared<uint64_t> s = shared_at<uint64_t>(0);
      if (zeroed && thread_id() < 4) s[thread_id()] = 0;
      sync();
      atomic_add(s + thread_id() % 4, uint64_t{thread_id()} << 32);
      if (barrier) sync();
      const uint64_t sum = s[thread_id() % 4];
      if (thread_id() < 4) Global<uint64_t>(out.data())[thread_id()] = sum;
    };
  };
  EXPECT_EQ(error_of(shape, sums(true, true)), "no error");
  for (int i = 0; i < 4; ++i) EXPECT_EQ(out.values()[i], uint64_t(16 * i + 4 * 120) << 32);
  EXPECT_NE(error_of(shape, sums(true, false)), "no error");
  EXPECT_NE(error_of(shape, sums(false, true)).find("nobody wrote"), std::string::npos);
}

TEST_P(EachOrder, AsynchronousCopiesMustBeWaitedFor) {
  Buffer<float> x(std::vector<float>(128, 2.0f));
  const LaunchShape shape{.shared_bytes = 1024};
  const auto copies = [&](bool wait) {
    return [&x, wait] {
      const Shared<float> s = shared_at<float>(0);
      for (int group = 0; group < 2; ++group) {
        async_copy16(s + (group * 128 + int(lane_id()) * 4),
                     Global<const float>(x.data()) + int(lane_id()) * 4);
        async_commit();
      }
      if (wait) async_wait<1>();  // the first group only
      float v = s[int(lane_id()) * 4];
      (void)v;
    };
  };
  EXPECT_EQ(error_of(shape, copies(true)), "no error");
  EXPECT_NE(error_of(shape, copies(false)).find("asynchronous copy"), std::string::npos);
  // On sm_75 the copy is a plain one.
  emulated::options().arch = 75;
  EXPECT_EQ(error_of(shape, copies(false)), "no error");
}

TEST_P(EachOrder, DeviceMemoryMistakesAreFound) {
  Buffer<float> x(std::vector<float>(40, 1.0f)), y(40);
  EXPECT_NE(error_of({.threads = 64},
                     [&] {
                       float v = Global<const float>(x.data())[thread_id()];
                       (void)v;
                     })
                .find("outside any buffer"),
            std::string::npos);
  EXPECT_NE(error_of({},
                     [&] {
                       float v = Global<const float>(y.data())[thread_id()];
                       (void)v;
                     })
                .find("nobody wrote"),
            std::string::npos);
  EXPECT_NE(error_of({},
                     [&] {
                       Words4 v = global_cast<const Words4>(Global<const float>(x.data()) + 1)[0];
                       (void)v;
                     })
                .find("aligned"),
            std::string::npos);
  run({}, [&] { Global<float>(y.data())[thread_id()] = 1; });
  EXPECT_THROW(y.values(), EmulationError);  // eight elements are still missing
}

TEST_P(EachOrder, AnErrorLeavesTheNextLaunchAlone) {
  EXPECT_THROW(run({.threads = 64},
                   [] {
                     if (thread_id() == 3) throw EmulationError("x");
                     sync();
                   }),
               EmulationError);
  Buffer<int> out(64);
  run({.threads = 64}, [&] {
    sync();
    Global<int>(out.data())[thread_id()] = int(thread_id());
  });
  EXPECT_EQ(out.values()[63], 63);
}

}  // namespace
}  // namespace kt::cuda
