// On a card only: a captured step gives what its operations give one by one, whichever way the work
// reaches the CPU, and is one launch that can be replayed.
#include "cuda/model/card_runner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>

#include "../../bench/cuda/v3_width.h"
#include "cuda/common/cuda_error.h"

namespace kt::cuda {
namespace {

class OneByOne : public StepRecorder {
 public:
  OneByOne(CardModel& model, bench::ExpertJob& job, const StepSize& size)
      : model_(model), job_(job), size_(size) {}
  void run(StepStream, StepOp op, int layer) override { model_.launch(nullptr, op, layer, size_); }
  void order(StepStream, StepStream) override {}
  void post(uint64_t job) override {
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    job_.run(static_cast<int>(job) - 1);
  }
  void await(uint64_t) override {}

 private:
  CardModel& model_;
  bench::ExpertJob& job_;
  StepSize size_;
};

struct Scene {
  CudaMemory memory;
  cpu::Context context{2};
  bench::V3 v3;
  std::unique_ptr<CardModel> model;
  std::unique_ptr<bench::ExpertJob> job;
  std::vector<float> embeddings;

  explicit Scene(int int4 = -1) {
    bench::V3Options options;
    options.int4 = int4;
    options.narrow = true, options.moe_layers = 3, options.experts = 12, options.batch = 2;
    options.context = 128, options.vocab = 64;
    cudaDeviceProp card;
    check(cudaGetDeviceProperties(&card, 0), "cudaGetDeviceProperties");
    v3 = bench::V3Maker(memory, context)
             .make(options, card.multiProcessorCount, card.major * 10 + card.minor);
    model = std::make_unique<CardModel>(v3.shape, v3.layers, v3.final_norm, v3.head, v3.inv_freq,
                                          memory);
    job = std::make_unique<bench::ExpertJob>(bench::ExpertJob{model.get(), &v3, &context});
    std::mt19937 random(4);
    std::normal_distribution<float> normal(0, 1);
    embeddings.resize(2 * v3.shape.hidden);
    for (float& v : embeddings) v = normal(random);
  }
  StepSize begin(int position) {
    const std::vector<int32_t> positions(2, position);
    return model->begin_step(embeddings.data(), positions.data(), {{0, 1}, {3, 2}});
  }
  std::vector<float> logits() const {
    return {model->logits(), model->logits() + 2 * v3.shape.vocab};
  }
  std::vector<HandoffJob> jobs() {
    const auto run = [](void* job, int layer) { static_cast<bench::ExpertJob*>(job)->run(layer); };
    return {{run, job.get(), 0, "a"}, {run, job.get(), 1, "b"}, {run, job.get(), 2, "c"}};
  }
};

void check_way(HandoffWay way, int int4 = -1) {
  Scene scene(int4);
  std::vector<std::vector<float>> expected;
  for (int position = 0; position < 3; ++position) {
    const StepSize size = scene.begin(position);
    OneByOne recorder(*scene.model, *scene.job, size);
    record_step(scene.model->step_layers(size), false, recorder);
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    expected.push_back(scene.logits());
  }
  CardRunner runner(*scene.model, scene.memory, scene.jobs(), way, {});
  for (int round = 0; round < 20; ++round) {
    for (int position = 0; position < 3; ++position) {
      runner.step(scene.begin(position));
      const std::vector<float> got = scene.logits();
      for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_TRUE(std::isfinite(got[i])) << "round " << round;
        ASSERT_NEAR(got[i], expected[position][i], 1e-5) << "round " << round;
      }
    }
  }
}

TEST(CardRunner, ACapturedStepGivesWhatItsOperationsDo) {
  if (probe_handoff() != HandoffWay::kMemoryOperations) {
    GTEST_SKIP() << "this card or driver has no stream memory operations";
  }
  check_way(HandoffWay::kMemoryOperations);
}

TEST(CardRunner, ACapturedStepChoosesTokens) {
  Scene scene;
  CardRunner runner(*scene.model, scene.memory, scene.jobs(), HandoffWay::kHostFunction, {});
  for (int position = 0; position < 3; ++position) {
    runner.step(scene.begin(position));
    StepSize size = scene.begin(position);
    kt_cuda_sampling greedy{};
    greedy.greedy = 1;
    scene.model->sample_next({greedy, greedy}, size);
    runner.step(size);
    for (int row = 0; row < 2; ++row) {
      // Of the step before.
      const float* logits = scene.model->logits() + row * scene.v3.shape.vocab;
      const auto best = std::max_element(logits, logits + scene.v3.shape.vocab) - logits;
      EXPECT_EQ(scene.model->tokens()[row], best);
    }
  }
}

TEST(CardRunner, ACapturedStepOfInt4LinearsToo) { check_way(HandoffWay::kHostFunction, 0); }

TEST(CudaMemory, BringsWhatIsPinnedAndWhatIsNot) {
  std::vector<uint8_t> from(3 * Staging::kSlots * Staging::kSlotBytes + 77);
  for (size_t i = 0; i < from.size(); ++i) from[i] = uint8_t(i * 31 + i / 4096);
  CudaMemory memory;
  auto* const pinned = memory.take<uint8_t>(from.size());
  auto* const staged = memory.take<uint8_t>(from.size());
  memory.prepare_copies(true);
  std::vector<uint8_t> got(from.size());
  {
    const Pins pins(memory, {{from.data(), from.size()}}, SIZE_MAX);
    EXPECT_EQ(pins.report().why, std::string());
    EXPECT_TRUE(pins.has(from.data(), from.size()));
    memory.bring({{pinned, from.data(), from.size(), true}}, 0);
    memory.bring({{staged, from.data(), from.size(), false}}, 1);
    memory.arrived(0, nullptr), memory.arrived(1, nullptr);
    memory.finish(nullptr);
  }
  for (const uint8_t* copy : {pinned, staged}) {
    check(cudaMemcpy(got.data(), copy, got.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
    EXPECT_TRUE(got == from);
  }
  memory.prepare_copies(true);
  EXPECT_THROW(memory.device(size_t{1} << 50), Error);
}

TEST(CardRunner, HostFunctionsDoTheSame) { check_way(HandoffWay::kHostFunction); }

TEST(CardRunner, AJobsExceptionReachesTheCallerAndTheNextStepIsGood) {
  for (const HandoffWay way : {HandoffWay::kMemoryOperations, HandoffWay::kHostFunction}) {
    if (way == HandoffWay::kMemoryOperations && probe_handoff() != way) continue;
    Scene scene;
    bool burns = true;
    HandoffJob fire{[](void* burns, int) {
                      if (*static_cast<bool*>(burns)) throw Error("expert 5 is on fire");
                    },
                    &burns, 0, "fire"};
    CardRunner runner(*scene.model, scene.memory, {fire, fire, fire}, way, {});
    const StepSize size = scene.begin(0);
    std::string message;
    try {
      runner.step(size);
    } catch (const Error& error) {
      message = error.what();
    }
    EXPECT_EQ(message, std::string("expert 5 is on fire"));
    burns = false;
    runner.step(size);
  }
}

}  // namespace
}  // namespace kt::cuda
