// A LatentModel on a real card: its memory, its step captured once, the coordinator that runs the
// CPU's experts inside it. One launch per step.
#pragma once

#include <exception>
#include <memory>
#include <vector>

#include "cuda/graph/cuda_recorder.h"
#include "cuda/graph/handoff.h"
#include "cuda/model/latent_model.h"
#include "cuda/model/memory.h"

namespace kt::cuda {

/// cudaMalloc and pinned, mapped host memory; given back at the end.
class CudaMemory : public Memory {
 public:
  ~CudaMemory() override;
  void* device(size_t bytes) override;
  void* mapped(size_t bytes) override;
  void upload(void* to, const void* from, size_t bytes) override;

 private:
  std::vector<void*> device_, mapped_;
};

class LatentRunner {
 public:
  /// Runs a step without its jobs first, which writes position 0 of the cache's page 0: before any
  /// sequence has it. jobs: one per MoE layer with CPU experts, in order (LatentModel::host_experts
  /// has their data).
  /// Throws CudaError, naming the operation whose capture failed.
  LatentRunner(LatentModel& model, Memory& memory, std::vector<HandoffJob> jobs, HandoffWay way,
               HandoffOptions options);
  ~LatentRunner();
  LatentRunner(const LatentRunner&) = delete;
  LatentRunner& operator=(const LatentRunner&) = delete;

  /// Launches the step that LatentModel::begin_step prepared, and waits. Throws a job's exception,
  /// or Error where the watchdog gave up.
  void step();
  size_t nodes() const { return graph_->nodes(); }

 private:
  /// A job on the driver's thread, whose exception must not cross the driver.
  struct Guarded {
    HandoffJob job;
    std::exception_ptr* error;
    static void run(void* self, int) noexcept;
  };

  Mailbox* mailbox_;
  std::vector<Guarded> guarded_;
  std::exception_ptr error_;  // of the first guarded job that threw
  std::unique_ptr<StepGraph> graph_;
  std::unique_ptr<Coordinator> coordinator_;
  Stream stream_ = nullptr;
};

}  // namespace kt::cuda
