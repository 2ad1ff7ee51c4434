#include "cuda/graph/step.h"

#include "base/error.h"

namespace kt::cuda {

const char* name_of(StepOp op) {
  constexpr const char* kNames[] = {
      "embed",         "attention",        "dense ffn",      "ffn norm", "router", "copy to host",
      "shared expert", "resident experts", "streamed experts", "copy from host", "combine", "head",
      "sample"};
  return kNames[static_cast<int>(op)];
}

namespace {

constexpr auto kMain = StepStream::kMain, kSide = StepStream::kSide;

void record_moe(const StepLayer& layer, int index, uint64_t job, StepRecorder& r) {
  r.run(kMain, StepOp::kRouter, index);
  // The CPU first: everything else of the layer happens while it works.
  if (layer.cpu_experts) {
    r.run(kMain, StepOp::kCopyToHost, index);
    r.post(job);
  }
  if (layer.shared_expert) {
    r.order(kMain, kSide);
    r.run(kSide, StepOp::kSharedExpert, index);
  }
  if (layer.resident_experts) r.run(kMain, StepOp::kResidentExperts, index);
  if (layer.shared_expert) r.order(kSide, kMain);
  if (layer.streamed_experts) return r.run(kMain, StepOp::kStreamedExperts, index);
  if (layer.cpu_experts) {
    r.await(job);
    r.run(kMain, StepOp::kCopyFromHost, index);
  }
  r.run(kMain, StepOp::kCombine, index);
}

}  // namespace

int record_step(const std::vector<StepLayer>& layers, bool sample, StepRecorder& r) {
  KT_CHECK(!layers.empty(), "a step without layers");
  int jobs = 0;
  r.run(kMain, StepOp::kEmbed, -1);
  for (size_t i = 0; i < layers.size(); ++i) {
    const int index = static_cast<int>(i);
    KT_CHECK(!layers[i].moe || layers[i].cpu_experts || layers[i].resident_experts ||
                 layers[i].streamed_experts, "layer ", i,
             " has experts nowhere");
    r.run(kMain, StepOp::kAttention, index);
    if (layers[i].cpu_ffn) {
      const auto job = static_cast<uint64_t>(++jobs);
      r.run(kMain, StepOp::kFfnNorm, index);
      r.run(kMain, StepOp::kCopyToHost, index);
      r.post(job);
      r.await(job);
      r.run(kMain, StepOp::kCopyFromHost, index);
    } else if (layers[i].moe) {
      if (layers[i].cpu_experts) ++jobs;
      record_moe(layers[i], index, static_cast<uint64_t>(jobs), r);
    } else {
      r.run(kMain, StepOp::kDenseFfn, index);
    }
  }
  r.run(kMain, StepOp::kHead, -1);
  if (sample) r.run(kMain, StepOp::kSample, -1);
  return jobs;
}

}  // namespace kt::cuda
