// The decode step's order against a recording stub, and the hand-off with a simulated stream: a
// thread that does to the mailbox what the GPU's write and wait nodes do. Run under ThreadSanitizer
// by `make check`, which sees a payload read before its flag allows it.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "cuda/graph/handoff.h"
#include "cuda/graph/step.h"

namespace kt::cuda {
namespace {

/// Writes down what comes, with clocks: which operations each operation is ordered behind.
class Stub : public StepRecorder {
 public:
  struct Entry {
    std::string what;
    int layer;
    std::vector<int> after;  // indices this one waits for, over streams and orders
  };
  std::vector<Entry> entries;

  void run(StepStream stream, StepOp op, int layer) override {
    add(int(stream), name_of(op), layer);
  }
  void order(StepStream from, StepStream to) override { merge(seen_[int(to)], seen_[int(from)]); }
  void post(uint64_t job) override { add(0, "post", int(job)); }
  void await(uint64_t job) override { add(0, "await", int(job)); }

  int find(const std::string& what, int layer) const {
    for (size_t i = 0; i < entries.size(); ++i)
      if (entries[i].what == what && entries[i].layer == layer) return int(i);
    return -1;
  }
  bool ordered(int first, int second) const {
    const auto& after = entries[second].after;
    return std::find(after.begin(), after.end(), first) != after.end();
  }

 private:
  static void merge(std::vector<int>& into, const std::vector<int>& from) {
    for (int i : from)
      if (std::find(into.begin(), into.end(), i) == into.end()) into.push_back(i);
  }
  void add(int stream, const char* what, int layer) {
    entries.push_back({what, layer, seen_[stream]});
    seen_[stream].push_back(int(entries.size()) - 1);
  }
  std::vector<int> seen_[2];
};

std::vector<StepLayer> model() {
  return {{}, {true, true, true, true}, {true, false, true, false}, {true, true, false, true}};
}

TEST(Step, EveryLayerIsRecordedInOrderOnce) {
  Stub stub;
  EXPECT_EQ(record_step(model(), true, stub), 2);
  std::vector<std::string> main;
  for (const auto& e : stub.entries) main.push_back(e.what);
  EXPECT_EQ(main, (std::vector<std::string>{"embed",
                                            "attention",
                                            "dense ffn",  // 0
                                            "attention",
                                            "router",
                                            "copy to host",
                                            "post",
                                            "shared expert",  // 1
                                            "resident experts",
                                            "await",
                                            "copy from host",
                                            "combine",  //
                                            "attention",
                                            "router",
                                            "copy to host",
                                            "post",
                                            "await",
                                            "copy from host",  // 2
                                            "combine",
                                            "attention",
                                            "router",
                                            "shared expert",
                                            "resident experts",  // 3
                                            "combine",
                                            "head",
                                            "sample"}));
}

TEST(Step, TheCpuWorksWhileTheGpuDoes) {
  Stub stub;
  record_step(model(), true, stub);
  const int post = stub.find("post", 1), await = stub.find("await", 1);
  const int shared = stub.find("shared expert", 1), resident = stub.find("resident experts", 1);
  const int combine = stub.find("combine", 1);
  EXPECT_TRUE(stub.ordered(stub.find("copy to host", 1), post));
  EXPECT_TRUE(stub.ordered(stub.find("router", 1), shared));
  // Posted before either starts, awaited after both; neither waits for the other.
  EXPECT_LT(post, std::min(shared, resident));
  EXPECT_GT(await, std::max(shared, resident));
  EXPECT_FALSE(stub.ordered(shared, resident));
  EXPECT_FALSE(stub.ordered(resident, shared));
  for (int needed : {await, shared, resident, stub.find("copy from host", 1)})
    EXPECT_TRUE(stub.ordered(needed, combine)) << stub.entries[needed].what;
  // Everything is behind the last operation: a graph has one end.
  for (size_t i = 0; i + 1 < stub.entries.size(); ++i)
    EXPECT_TRUE(stub.ordered(int(i), int(stub.entries.size()) - 1)) << stub.entries[i].what;
}

/// Three MoE layers, all with work for the CPU; the first two defer.
std::vector<StepLayer> deferring() {
  StepLayer all{true, true, true, true};
  std::vector<StepLayer> layers{{}, all, all, all};
  layers[1].defers = layers[2].defers = true;
  layers[2].shared_expert = layers[2].resident_experts = false;
  return layers;
}

TEST(Step, DeferredExpertsRunInTheNextLayerAndNoneIsLeft) {
  Stub stub;
  EXPECT_EQ(record_step(deferring(), false, stub), 3);
  // Jobs 1, 2, 3 are the layers' own, 4 and 5 the deferred ones of the first two.
  for (const int layer : {1, 2}) {
    const int posted = stub.find("post", 3 + layer), awaited = stub.find("await", 3 + layer);
    ASSERT_GE(posted, 0);
    // The layer's own job and what it gave come first; the GPU goes on without waiting.
    EXPECT_TRUE(stub.ordered(stub.find("await", layer), posted));
    for (const char* meanwhile : {"attention", "router"}) {
      const int there = stub.find(meanwhile, layer + 1);
      EXPECT_TRUE(stub.ordered(posted, there)) << meanwhile;
      EXPECT_FALSE(stub.ordered(awaited, there)) << meanwhile;
    }
    EXPECT_LT(posted, stub.find("combine", layer));
    // Its activations lie in memory until it is done, and one job is under way at a time.
    EXPECT_TRUE(stub.ordered(awaited, stub.find("copy to host", layer + 1)));
    EXPECT_TRUE(stub.ordered(awaited, stub.find("post", layer + 1)));
    // The next layer adds it, before the next deferred job may write to its place.
    const int fetched = stub.find("deferred from host", layer + 1);
    EXPECT_TRUE(stub.ordered(awaited, fetched));
    EXPECT_TRUE(stub.ordered(fetched, stub.find("combine", layer + 1)));
    if (layer == 1) {
      EXPECT_TRUE(stub.ordered(fetched, stub.find("post", 5)));
    }
  }
  // The shared expert of the last layer runs while deferred experts do.
  EXPECT_FALSE(stub.ordered(stub.find("await", 5), stub.find("shared expert", 3)));
  EXPECT_EQ(stub.find("deferred from host", 1), -1);
  EXPECT_EQ(stub.find("post", 6), -1);  // the last layer keeps nothing back
  int posts = 0, awaits = 0;
  for (const auto& e : stub.entries) posts += e.what == "post", awaits += e.what == "await";
  EXPECT_EQ(posts, 5);
  EXPECT_EQ(awaits, 5);
}

TEST(Step, RefusesToDeferToALayerThatDoesNotWait) {
  Stub stub;
  std::vector<StepLayer> layers = deferring();
  layers[3].defers = true;  // the last one
  EXPECT_THROW(record_step(layers, false, stub), InvalidArgument);
  layers = deferring();
  layers[2] = {};
  EXPECT_THROW(record_step(layers, false, stub), InvalidArgument);
}

TEST(Step, RefusesExpertsThatAreNowhere) {
  Stub stub;
  EXPECT_THROW(record_step({{true, true, false, false}}, false, stub), InvalidArgument);
  EXPECT_THROW(record_step({}, false, stub), InvalidArgument);
}

// ---- the hand-off ----

/// Payload without atomics: only the flags order it.
struct Layer {
  int input = 0, output = 0;
};
struct Cpu {
  std::vector<Layer> layers;
  int throw_at = -1;
  std::atomic<bool> block{false};
};
void work(void* context, int layer) {
  Cpu& cpu = *static_cast<Cpu*>(context);
  while (cpu.block.load()) std::this_thread::yield();
  if (layer == cpu.throw_at) throw Error("expert 5 is on fire");
  cpu.layers[layer].output = 2 * cpu.layers[layer].input + 1;
}
std::vector<HandoffJob> jobs_of(Cpu& cpu) {
  std::vector<HandoffJob> jobs;
  for (size_t i = 0; i < cpu.layers.size(); ++i)
    jobs.push_back({work, &cpu, int(i), "experts of a layer"});
  return jobs;
}

/// The GPU's side of one step, as the graph's nodes do it.
void simulate_step(Mailbox& mailbox, Cpu& cpu, int value, std::atomic<bool>& finished,
                   std::vector<int>& outputs) {
  for (size_t i = 0; i < cpu.layers.size(); ++i) {
    cpu.layers[i].input = value + int(i);
    mailbox.go.store(i + 1, std::memory_order_release);
    while (mailbox.done.load(std::memory_order_acquire) != i + 1) std::this_thread::yield();
    mailbox.done.store(0, std::memory_order_release);
    outputs.push_back(cpu.layers[i].output);
  }
  finished.store(true, std::memory_order_release);
}

TEST(Handoff, ManyStepsOverManyLayers) {
  Mailbox mailbox;
  Cpu cpu;
  cpu.layers.resize(7);
  HandoffOptions options;
  options.hot_seconds = 1e-4;  // it falls asleep between steps, and must wake
  Coordinator coordinator(mailbox, jobs_of(cpu), options);
  for (int step = 0; step < 60; ++step) {
    std::atomic<bool> finished{false};
    std::vector<int> outputs;
    coordinator.begin_step();
    std::thread gpu([&] { simulate_step(mailbox, cpu, 10 * step, finished, outputs); });
    coordinator.end_step([&] { return finished.load(std::memory_order_acquire); });
    gpu.join();
    ASSERT_EQ(outputs.size(), 7u);
    for (int i = 0; i < 7; ++i) ASSERT_EQ(outputs[i], 2 * (10 * step + i) + 1);
    if (step % 20 == 19) std::this_thread::sleep_for(std::chrono::milliseconds(3));
  }
  EXPECT_EQ(coordinator.jobs_run(), 420u);
}

TEST(Handoff, OneLayerIsNotTakenForTheLastStepsOne) {
  Mailbox mailbox;
  Cpu cpu;
  cpu.layers.resize(1);
  Coordinator coordinator(mailbox, jobs_of(cpu), {});
  for (int step = 0; step < 100; ++step) {
    std::atomic<bool> finished{false};
    std::vector<int> outputs;
    coordinator.begin_step();
    std::thread gpu([&] { simulate_step(mailbox, cpu, step, finished, outputs); });
    coordinator.end_step([&] { return finished.load(std::memory_order_acquire); });
    gpu.join();
    ASSERT_EQ(outputs, std::vector<int>{2 * step + 1});
  }
}

TEST(Handoff, AnExceptionReachesTheCallerAndTheGpuGoesOn) {
  Mailbox mailbox;
  Cpu cpu;
  cpu.layers.resize(3);
  cpu.throw_at = 1;
  Coordinator coordinator(mailbox, jobs_of(cpu), {});
  const auto step = [&] {
    std::atomic<bool> finished{false};
    std::vector<int> outputs;
    coordinator.begin_step();
    std::thread gpu([&] { simulate_step(mailbox, cpu, 1, finished, outputs); });
    std::string message;
    try {
      coordinator.end_step([&] { return finished.load(std::memory_order_acquire); });
    } catch (const Error& error) {
      message = error.what();
    }
    gpu.join();
    return message;
  };
  EXPECT_EQ(step(), "expert 5 is on fire");
  cpu.throw_at = -1;
  EXPECT_EQ(step(), "");  // and the next step is a good one
}

TEST(Handoff, TheWatchdogReleasesTheGpu) {
  Mailbox mailbox;
  Cpu cpu;
  cpu.layers.resize(1);
  cpu.block = true;
  HandoffOptions options;
  options.limit_seconds = 0.05;
  Coordinator coordinator(mailbox, jobs_of(cpu), options);
  std::atomic<bool> finished{false};
  std::vector<int> outputs;
  coordinator.begin_step();
  std::thread gpu([&] {
    mailbox.go.store(1, std::memory_order_release);
    while (mailbox.done.load(std::memory_order_acquire) != 1) std::this_thread::yield();
    finished.store(true, std::memory_order_release);
  });
  try {
    coordinator.end_step([&] { return finished.load(std::memory_order_acquire) && false; });
    FAIL() << "a job that never ends went unseen";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("no result from the CPU"), std::string::npos);
  }
  gpu.join();  // it was released
  EXPECT_TRUE(finished.load());
  cpu.block = false;
  EXPECT_THROW(coordinator.begin_step(), Error);
}

TEST(Handoff, AJobThatIsNotThereIsAnError) {
  Mailbox mailbox;
  Coordinator coordinator(mailbox, {}, {});
  coordinator.begin_step();
  mailbox.go.store(9, std::memory_order_release);
  EXPECT_THROW(coordinator.end_step([&] { return mailbox.done.load() == 9; }), Error);
}

}  // namespace
}  // namespace kt::cuda
