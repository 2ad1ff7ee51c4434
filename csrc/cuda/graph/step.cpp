#include "cuda/graph/step.h"

#include <algorithm>

#include "base/error.h"

namespace kt::cuda {

const char* name_of(StepOp op) {
  constexpr const char* kNames[] = {
      "embed",         "attention",        "dense ffn",        "ffn norm",       "router",
      "copy to host",  "shared expert",    "resident experts", "streamed experts", "copy from host",
      "deferred from host", "combine",     "head",             "sample"};
  return kNames[static_cast<int>(op)];
}

namespace {

constexpr auto kMain = StepStream::kMain, kSide = StepStream::kSide;

/// Jobs of a MoE layer; 0: there is none.
struct MoeJobs {
  uint64_t own, deferred;  // its experts, and the least of them
  uint64_t owed;           // the least of the layer before
};

void record_shared_expert(int index, StepRecorder& r) {
  r.order(kMain, kSide);
  r.run(kSide, StepOp::kSharedExpert, index);
}

void record_moe(const StepLayer& layer, int index, const MoeJobs& jobs, StepRecorder& r) {
  r.run(kMain, StepOp::kRouter, index);
  if (jobs.owed) {  // one job is under way at a time, and the next one's data takes its place
    if (layer.shared_expert) record_shared_expert(index, r);
    r.await(jobs.owed);
  }
  // The CPU first: everything else of the layer happens while it works.
  if (layer.cpu_experts) {
    r.run(kMain, StepOp::kCopyToHost, index);
    r.post(jobs.own);
  }
  if (jobs.owed) r.run(kMain, StepOp::kDeferredFromHost, index);
  if (layer.shared_expert && !jobs.owed) record_shared_expert(index, r);
  if (layer.resident_experts) r.run(kMain, StepOp::kResidentExperts, index);
  if (layer.shared_expert) r.order(kSide, kMain);
  if (layer.streamed_experts) return r.run(kMain, StepOp::kStreamedExperts, index);
  if (layer.cpu_experts) {
    r.await(jobs.own);
    if (jobs.deferred) r.post(jobs.deferred);  // its result has a place of its own
    r.run(kMain, StepOp::kCopyFromHost, index);
  }
  r.run(kMain, StepOp::kCombine, index);
}

bool has_job(const StepLayer& layer) { return layer.cpu_ffn || (layer.moe && layer.cpu_experts); }

}  // namespace

int record_step(const std::vector<StepLayer>& layers, bool sample, StepRecorder& r) {
  KT_CHECK(!layers.empty(), "a step without layers");
  const auto all_jobs =
      static_cast<uint64_t>(std::count_if(layers.begin(), layers.end(), has_job));
  int jobs = 0;
  uint64_t owed = 0;
  r.run(kMain, StepOp::kEmbed, -1);
  for (size_t i = 0; i < layers.size(); ++i) {
    const int index = static_cast<int>(i);
    KT_CHECK(!layers[i].moe || layers[i].cpu_experts || layers[i].resident_experts ||
                 layers[i].streamed_experts,
             "layer ", i, " has experts nowhere");
    const auto waits = [&](size_t l) { return layers[l].moe && layers[l].cpu_experts; };
    KT_CHECK(!layers[i].defers || (waits(i) && i + 1 < layers.size() && waits(i + 1)), "layer ", i,
             " defers experts to a layer that does not wait for the CPU");
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
      const auto own = static_cast<uint64_t>(jobs);
      const uint64_t deferred = layers[i].defers ? all_jobs + own : 0;
      record_moe(layers[i], index, {own, deferred, owed}, r);
      owed = deferred;
    } else {
      r.run(kMain, StepOp::kDenseFfn, index);
    }
  }
  r.run(kMain, StepOp::kHead, -1);
  if (sample) r.run(kMain, StepOp::kSample, -1);
  return jobs;
}

}  // namespace kt::cuda
