// A decode step as a list of operations on two streams, recorded once and replayed as one graph.
//
// What the operations do is the recorder's business: one captures CUDA streams (cuda_recorder.h),
// the tests' writes down what came. So the order below, and who waits for whom, is checked without
// a GPU.
//
//   main  | norm attention norm router | post | resident experts | wait | combine | norm ...
//   side  |                            | shared expert           |
//   CPU   |                            | experts without a slot  |
//
// With deferral the CPU goes on with a layer's least experts while the GPU is in the next layer,
// whose combination adds them:
//
//   main | ... combine norm attention norm router | wait | post | ... | wait | post least | combine
//   CPU  |       least experts of the last layer         | experts    |       | least experts ...
#pragma once

#include <cstdint>
#include <vector>

namespace kt::cuda {

enum class StepOp : uint8_t {
  kEmbed,
  kAttention,   // norm, projections, rotation, cache, attention, output projection
  kDenseFfn,    // norm, gate and up, activation, down
  kFfnNorm,     // the norm alone: what follows is the CPU's
  kRouter,      // norm, logits, choice, routing to places
  kCopyToHost,  // activations and the CPU's assignments, to pinned memory
  kSharedExpert,
  kResidentExperts,  // gate and up, activation, down of experts with a slot
  kStreamedExperts,  // all experts, those without a slot brought to the card meanwhile; and the sum
  kCopyFromHost,
  kDeferredFromHost,  // what the CPU's least experts of the layer before gave
  kCombine,  // weighted sum, shared expert, CPU part, residual
  kHead,     // last norm, lm_head; without them: the residual stream to the host
  kSample,
};
const char* name_of(StepOp op);

enum class StepStream : uint8_t { kMain, kSide };

/// What a layer is made of.
struct StepLayer {
  bool moe = false;
  bool shared_expert = false;
  bool cpu_experts = false;       // some experts have no slot
  bool resident_experts = false;  // some have one
  bool streamed_experts = false;  // instead of both; for prompts, never captured
  bool defers = false;            // the least of the CPU's experts are added by the next layer
  bool cpu_ffn = false;           // the whole feed-forward part is the CPU's; no moe then
};

class StepRecorder {
 public:
  virtual ~StepRecorder() = default;
  virtual void run(StepStream stream, StepOp op, int layer) = 0;
  /// What follows on `to` waits for what `from` was given so far.
  virtual void order(StepStream from, StepStream to) = 0;
  /// go = job, and: wait for done == job, then done = 0. On the main stream.
  virtual void post(uint64_t job) = 0;
  virtual void await(uint64_t job) = 0;
};

/// Records a step. Jobs are numbered 1, 2, ... over the layers with work for the CPU, n of them;
/// a layer's deferred experts are the job n behind its own. Returns n. Throws InvalidArgument for a
/// layer that defers where the next one is no MoE layer with work for the CPU.
int record_step(const std::vector<StepLayer>& layers, bool sample, StepRecorder& recorder);

}  // namespace kt::cuda
