// A decode step asks the system for nothing: every operator new of the process is counted.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "program/sampling.h"
#include "tiny_model.h"

namespace {

std::atomic<int64_t> allocations{0};

void* counted(std::size_t bytes) {
  ++allocations;
  if (void* p = std::malloc(bytes ? bytes : 1)) return p;
  throw std::bad_alloc();
}

}  // namespace

// libstdc++'s array forms call these; so does its nothrow form, but not that of sanitizers.
void* operator new(std::size_t bytes) { return counted(bytes); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return counted(bytes); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }

namespace kt::program {
namespace {

// A model with a router too: attention, routed experts with groups and a bias, a dense layer.
std::shared_ptr<Decoder> mixed_decoder(TinyModel& model) {
  constexpr int kExperts = 8, kWidth = 16;
  cpu::RouterOptions options;
  options.num_experts_per_tok = 3;
  options.sigmoid = true;
  options.bias = model.floats(kExperts, 0.1f);
  options.n_group = 4, options.topk_group = 2, options.group_sum_of_two = true;
  options.norm_topk_prob = true;
  const auto router =
      std::make_shared<cpu::Router>(model.linear(kExperts, TinyModel::kHidden), options);
  std::vector<cpu::ExpertEntry> table(kExperts);
  const auto matrix = [&](int rows, int cols) {
    const auto values = model.floats(rows * cols, 0.2f);
    return cpu::Matrix::repack(*model.context, TinyModel::bytes(values), quant::F32::kGgufId, rows,
                               cols, "expert");
  };
  for (cpu::ExpertEntry& entry : table) {
    entry.gate = matrix(kWidth, TinyModel::kHidden);
    entry.up = matrix(kWidth, TinyModel::kHidden);
    entry.down = matrix(TinyModel::kHidden, kWidth);
  }
  const auto moe = std::make_shared<cpu::MoeBlock>(
      router, std::make_shared<cpu::Experts>(std::move(table)), nullptr, nullptr);
  auto nodes = model.nodes;
  nodes.push_back(std::make_shared<FeedForwardNode>("moe", TinyModel::norm(), moe));
  return model.make_decoder(nodes);
}

TEST(Allocation, TheCounterCounts) {
  const int64_t before = allocations;
  delete new int(1);
  EXPECT_EQ(allocations, before + 1);
}

// One position into a fresh page may need memory; the 63 after it do not, nor does choosing a token
// in any of the ways there are.
TEST(Allocation, ADecodeStepAllocatesNothing) {
  for (const int rows : {1, 3}) {
    TinyModel model(2);
    const auto decoder = mixed_decoder(model);
    OwnedStep step;
    std::vector<Sampler> samplers;
    for (int s = 0; s < rows; ++s) {
      step.sequences.push_back(model.kv->make_sequence());
      step.add(s, s, false);
      step.logits_rows.push_back(s);
    }
    for (int way = 0; way < 6; ++way) {
      SamplingOptions options;
      options.greedy = way == 0;
      if (way == 2) options.top_k = 5;
      if (way == 3) options.top_p = 0.9f;
      if (way == 4) options.min_p = 0.05f;
      if (way == 5) options.repetition_penalty = 1.1f, options.frequency_penalty = 0.1f;
      samplers.emplace_back(options);
    }
    StepOut out;
    int64_t warm = 0;
    for (int i = 0; i < 40; ++i) {
      const Step view = step.view();
      if (i == 3) warm = allocations;
      decoder->step(view, out);
      for (Sampler& sampler : samplers) {
        const int32_t token = sampler.sample({out.logits.data(), TinyModel::kVocab});
        step.token[0] = token;
      }
      for (int32_t& position : step.position) ++position;
    }
    EXPECT_EQ(allocations, warm) << rows << " rows";
    EXPECT_EQ(step.sequences[0]->length(), 40);
  }
}

// The clock names where the time went, and counts no moment twice.
TEST(Timing, PhasesAddUpToTheStep) {
  TinyModel model(2);
  const auto decoder = mixed_decoder(model);
  OwnedStep step;
  step.sequences.push_back(model.kv->make_sequence());
  for (int i = 0; i < 70; ++i) step.add(i % TinyModel::kVocab, 0);
  step.logits_rows.push_back(69);
  StepOut out;
  EXPECT_EQ(decoder->times(), nullptr);
  decoder->set_timing(true);
  const double begin = os::seconds();
  decoder->step(step.view(), out);
  const double whole = os::seconds() - begin;
  double sum = 0;
  for (size_t i = 0; i < cpu::kPhaseNames.size(); ++i) {
    const double seconds = decoder->times()->seconds(static_cast<cpu::Phase>(i));
    EXPECT_EQ(seconds > 0, cpu::kPhaseNames[i] != std::string("sampling")) << cpu::kPhaseNames[i];
    sum += seconds;
  }
  EXPECT_LE(sum, whole);
  decoder->set_timing(false);
  EXPECT_EQ(decoder->times(), nullptr);
}

}  // namespace
}  // namespace kt::program
