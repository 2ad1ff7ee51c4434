// A CardModel on a real card: its memory; decode steps captured once per number of rows, each one
// launch, with the coordinator that runs the CPU's part inside it; prompts launched operation by
// operation.
#pragma once

#include <exception>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "cuda/graph/cuda_recorder.h"
#include "cuda/graph/handoff.h"
#include "cuda/model/card.h"
#include "cuda/model/card_model.h"
#include "cuda/model/memory.h"
#include "cuda/model/staging.h"

namespace kt::cuda {

/// cudaMalloc and pinned, mapped host memory; given back at the end.
class CudaMemory : public Memory, private CopyQueue {
 public:
  ~CudaMemory() override;
  void* device(size_t bytes) override;
  void* mapped(size_t bytes) override;
  void upload(void* to, const void* from, size_t bytes) override;
  std::string pin(const void* at, size_t bytes) override;
  void unpin(const void* at) noexcept override;
  size_t prepare_copies(bool staged) override;
  void bring(const std::vector<Transfer>& pieces, int half) override;
  void arrived(int half, void* stream) override;
  void release(int half, void* stream) override;
  void finish_copies() noexcept override;
  void finish(void* stream) override;
  void copy(void* to, const void* from, size_t bytes) override;

 private:
  void send(void* to, const void* from, size_t bytes) override;
  void mark(int slot) override;
  void wait(int slot) override;

  void* copies_ = nullptr;             // a stream for bring()
  void *there_[2] = {}, *free_[2] = {};  // its events
  void* sent_[Staging::kSlots] = {};     // and those of staged copies
  std::unique_ptr<Staging> staging_;
  std::vector<void*> device_, mapped_;
};

class CardRunner : public StepRunner {
 public:
  CardRunner(CardModel& model, Memory& memory, std::vector<HandoffJob> jobs, HandoffWay way,
             HandoffOptions options);
  ~CardRunner() override;
  CardRunner(const CardRunner&) = delete;
  CardRunner& operator=(const CardRunner&) = delete;

  /// The first decode step of a size is captured: its operations are launched once before, without
  /// their jobs, and write what the step itself then overwrites. Throws CudaError, naming the
  /// operation whose capture failed.
  void step(const StepSize& size) override;
  /// Nodes of the graph launched last.
  size_t nodes() const { return nodes_; }

 private:
  /// A job on the driver's thread, whose exception must not cross the driver.
  struct Guarded {
    HandoffJob job;
    std::exception_ptr* error;
    static void run(void* self, int) noexcept;
  };

  StepGraph& graph_of(const StepSize& size);
  void run_eagerly(const StepSize& size);

  CardModel& model_;
  HandoffWay way_;
  Mailbox* mailbox_;
  std::vector<HandoffJob> jobs_, captured_jobs_;
  std::vector<Guarded> guarded_;
  std::exception_ptr error_;  // of the first guarded job that threw
  std::map<std::pair<int, bool>, std::unique_ptr<StepGraph>> graphs_;  // by rows, and sampling
  std::unique_ptr<Coordinator> coordinator_;
  size_t nodes_ = 0;
  Stream stream_ = nullptr;
  void* event_ = nullptr;
};

}  // namespace kt::cuda
