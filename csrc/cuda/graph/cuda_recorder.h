// Recording a step by stream capture, and the two ways to hand work to the CPU inside it. Only the
// CUDA library has this; the host code sees it through this header's plain types.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "cuda/common/types.h"
#include "cuda/graph/handoff.h"
#include "cuda/graph/step.h"

namespace kt::cuda {

/// How work reaches the CPU.
enum class HandoffWay : uint8_t {
  kMemoryOperations,  // write and wait nodes on the mailbox
  kHostFunction,      // cudaLaunchHostFunc: where the card or driver refuses the former
};

/// What this card and driver can do, found by running a small graph. Throws CudaError.
HandoffWay probe_handoff();

/// A captured step.
class StepGraph {
 public:
  /// launches(stream, op, layer) issues an operation's kernels on a stream.
  using Launches = std::function<void(Stream, StepOp, int)>;
  /// mailbox: in memory of cudaHostAlloc. coordinator: for kHostFunction, jobs run on the driver's
  /// thread through it. Throws CudaError with the operation that failed.
  StepGraph(const std::vector<StepLayer>& layers, bool sample, const Launches& launches,
            Mailbox& mailbox, const std::vector<HandoffJob>& jobs, HandoffWay way);
  ~StepGraph();
  StepGraph(const StepGraph&) = delete;
  StepGraph& operator=(const StepGraph&) = delete;

  /// One launch. Returns at once.
  void launch(Stream stream);
  /// Nodes of the graph.
  size_t nodes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Whether everything on the stream is done. Throws CudaError where something failed.
bool stream_done(Stream stream);

}  // namespace kt::cuda
