#include <cstring>
#include <new>
#include <utility>

#include "cuda/common/cuda_error.h"
#include "cuda/model/latent_runner.h"

namespace kt::cuda {

CudaMemory::~CudaMemory() {
  for (void* memory : device_) cudaFree(memory);
  for (void* memory : mapped_) cudaFreeHost(memory);
}

void* CudaMemory::device(size_t bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes), "cudaMalloc", bytes);
  device_.push_back(memory);
  check(cudaMemset(memory, 0, bytes), "cudaMemset", bytes);
  return memory;
}

void* CudaMemory::mapped(size_t bytes) {
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, bytes, cudaHostAllocMapped), "cudaHostAlloc", bytes);
  mapped_.push_back(memory);
  std::memset(memory, 0, bytes);
  return memory;
}

void CudaMemory::upload(void* to, const void* from, size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy", bytes);
}

namespace {

/// Launches every operation once: kernels are loaded when they are first launched, which must not
/// happen inside a capture, nor while the card waits for the CPU.
class WarmUp : public StepRecorder {
 public:
  explicit WarmUp(LatentModel& model) : model_(model) {}
  void run(StepStream, StepOp op, int layer) override { model_.launch(nullptr, op, layer); }
  void order(StepStream, StepStream) override {}
  void post(uint64_t) override {}
  void await(uint64_t) override {}

 private:
  LatentModel& model_;
};

void warm_up(LatentModel& model) {
  const LatentShape& s = model.shape();
  const std::vector<float> nothing(size_t(s.batch) * s.hidden);
  const std::vector<int32_t> first(s.batch, 0);
  model.begin_step(nothing.data(), first.data(),
                   std::vector<std::vector<int32_t>>(s.batch, std::vector<int32_t>{0}));
  WarmUp recorder(model);
  record_step(model.step_layers(), false, recorder);
  check(cudaDeviceSynchronize(), "a step's kernels");
}

}  // namespace

void LatentRunner::Guarded::run(void* self, int) noexcept {
  const Guarded& guarded = *static_cast<const Guarded*>(self);
  try {
    guarded.job.run(guarded.job.context, guarded.job.argument);
  } catch (...) {
    if (!*guarded.error) *guarded.error = std::current_exception();
  }
}

LatentRunner::LatentRunner(LatentModel& model, Memory& memory, std::vector<HandoffJob> jobs,
                           HandoffWay way, HandoffOptions options)
    : mailbox_(new(memory.mapped(sizeof(Mailbox))) Mailbox) {
  const auto launches = [&model](Stream stream, StepOp op, int layer) {
    model.launch(stream, op, layer);
  };
  if (way == HandoffWay::kHostFunction) {
    for (const HandoffJob& job : jobs) guarded_.push_back({job, &error_});
    for (size_t i = 0; i < jobs.size(); ++i)
      jobs[i] = {Guarded::run, &guarded_[i], 0, jobs[i].name};
  }
  warm_up(model);
  graph_ = std::make_unique<StepGraph>(model.step_layers(), false, launches, *mailbox_, jobs, way);
  coordinator_ = std::make_unique<Coordinator>(*mailbox_, std::move(jobs), options);
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  stream_ = stream;
}

LatentRunner::~LatentRunner() {
  cudaStreamSynchronize(static_cast<cudaStream_t>(stream_));
  cudaStreamDestroy(static_cast<cudaStream_t>(stream_));
}

void LatentRunner::step() {
  coordinator_->begin_step();
  graph_->launch(stream_);
  coordinator_->end_step([this] { return stream_done(stream_); });
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

}  // namespace kt::cuda
