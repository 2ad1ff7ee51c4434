#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "cuda/common/cuda_error.h"
#include "cuda/model/card_runner.h"

namespace kt::cuda {

CudaMemory::~CudaMemory() {
  for (void* memory : device_) cudaFree(memory);
  for (void* memory : mapped_) cudaFreeHost(memory);
  if (copies_) cudaStreamDestroy(static_cast<cudaStream_t>(copies_));
  for (void* event : {there_[0], there_[1], free_[0], free_[1]})
    if (event) cudaEventDestroy(static_cast<cudaEvent_t>(event));
  for (void* event : sent_)
    if (event) cudaEventDestroy(static_cast<cudaEvent_t>(event));
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

namespace {

/// Unless there is one. Waiting for one that was never recorded returns at once.
void make_event(void** event) {
  if (*event) return;
  cudaEvent_t made;
  check(cudaEventCreateWithFlags(&made, cudaEventDisableTiming), "cudaEventCreate");
  *event = made;
}

/// A copy may return before it is done, and steps run on a stream that waits for no other.
void wait_for_copies() { check(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize"); }

}  // namespace

void CudaMemory::upload(void* to, const void* from, size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy", bytes);
  wait_for_copies();
}

std::string CudaMemory::pin(const void* at, size_t bytes) {
  const cudaError_t status =
      cudaHostRegister(const_cast<void*>(at), bytes, cudaHostRegisterPortable);
  if (status == cudaSuccess) return {};
  cudaGetLastError();  // no operation after it is to report this one
  return std::string("cudaHostRegister: ") + cudaGetErrorString(status);
}

void CudaMemory::unpin(const void* at) noexcept {
  if (cudaHostUnregister(const_cast<void*>(at)) != cudaSuccess) cudaGetLastError();
}

size_t staging_bytes() { return Staging::kSlots * Staging::kSlotBytes; }

// What was made before something failed stays, and is not made again.
size_t CudaMemory::prepare_copies(bool staged) {
  if (!copies_) {
    cudaStream_t made;
    check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "cudaStreamCreate");
    copies_ = made;
  }
  for (void** event : {&there_[0], &there_[1], &free_[0], &free_[1]}) make_event(event);
  if (!staged || staging_) return 0;
  for (void*& event : sent_) make_event(&event);
  staging_ = std::make_unique<Staging>(static_cast<CopyQueue&>(*this),
                                       static_cast<uint8_t*>(mapped(staging_bytes())));
  return staging_bytes();
}

void CudaMemory::bring(const std::vector<Transfer>& pieces, int half) {
  check(cudaStreamWaitEvent(static_cast<cudaStream_t>(copies_),
                            static_cast<cudaEvent_t>(free_[half]), 0),
        "cudaStreamWaitEvent");
  for (const Transfer& piece : pieces) {
    if (piece.pinned)
      send(piece.to, piece.from, piece.bytes);
    else
      staging_->copy(piece.to, piece.from, piece.bytes);
  }
  check(cudaEventRecord(static_cast<cudaEvent_t>(there_[half]), static_cast<cudaStream_t>(copies_)),
        "cudaEventRecord");
}

void CudaMemory::send(void* to, const void* from, size_t bytes) {
  const auto copies = static_cast<cudaStream_t>(copies_);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, copies), "cudaMemcpyAsync",
        bytes);
}

void CudaMemory::mark(int slot) {
  check(cudaEventRecord(static_cast<cudaEvent_t>(sent_[slot]), static_cast<cudaStream_t>(copies_)),
        "cudaEventRecord");
}

void CudaMemory::wait(int slot) {
  check(cudaEventSynchronize(static_cast<cudaEvent_t>(sent_[slot])), "cudaEventSynchronize");
}

void CudaMemory::arrived(int half, void* stream) {
  check(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream),
                            static_cast<cudaEvent_t>(there_[half]), 0),
        "cudaStreamWaitEvent");
}

void CudaMemory::finish_copies() noexcept {
  if (copies_ && cudaStreamSynchronize(static_cast<cudaStream_t>(copies_)) != cudaSuccess)
    cudaGetLastError();
}

void CudaMemory::finish(void* stream) {
  check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "cudaStreamSynchronize");
}

void CudaMemory::release(int half, void* stream) {
  check(cudaEventRecord(static_cast<cudaEvent_t>(free_[half]), static_cast<cudaStream_t>(stream)),
        "cudaEventRecord");
}

void CudaMemory::copy(void* to, const void* from, size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToDevice), "cudaMemcpy", bytes);
  wait_for_copies();
}

int card_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

CardFacts card_facts(int device) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  CardFacts facts{properties.name, properties.multiProcessorCount,
                  properties.major * 10 + properties.minor, 0, 0};
  use_card(device);
  check(cudaMemGetInfo(&facts.free, &facts.memory), "cudaMemGetInfo");
  return facts;
}

void use_card(int device) { check(cudaSetDevice(device), "cudaSetDevice"); }

std::unique_ptr<Memory> open_memory(int device) {
  use_card(device);
  return std::make_unique<CudaMemory>();
}

std::unique_ptr<StepRunner> make_runner(CardModel& model, Memory& memory,
                                        std::vector<HandoffJob> jobs) {
  return std::make_unique<CardRunner>(model, memory, std::move(jobs), probe_handoff(),
                                      HandoffOptions{});
}

namespace {

cudaStream_t cuda(Stream stream) { return static_cast<cudaStream_t>(stream); }

/// Launches every operation of a step on one stream. Jobs run here, behind what was launched
/// between post and await.
class Eagerly : public StepRecorder {
 public:
  /// jobs: null runs none.
  Eagerly(CardModel& model, const StepSize& size, const std::vector<HandoffJob>* jobs,
          cudaStream_t stream, cudaEvent_t event)
      : model_(model), size_(size), jobs_(jobs), stream_(stream), event_(event) {}
  void run(StepStream, StepOp op, int layer) override { model_.launch(stream_, op, layer, size_); }
  void order(StepStream, StepStream) override {}
  void post(uint64_t) override { check(cudaEventRecord(event_, stream_), "cudaEventRecord"); }
  void await(uint64_t job) override {
    if (!jobs_) return;
    check(cudaEventSynchronize(event_), "cudaEventSynchronize");
    const HandoffJob& j = (*jobs_)[job - 1];
    j.run(j.context, j.argument);
  }

 private:
  CardModel& model_;
  const StepSize& size_;
  const std::vector<HandoffJob>* jobs_;
  cudaStream_t stream_;
  cudaEvent_t event_;
};

}  // namespace

void CardRunner::Guarded::run(void* self, int) noexcept {
  const Guarded& guarded = *static_cast<const Guarded*>(self);
  try {
    guarded.job.run(guarded.job.context, guarded.job.argument);
  } catch (...) {
    if (!*guarded.error) *guarded.error = std::current_exception();
  }
}

CardRunner::CardRunner(CardModel& model, Memory& memory, std::vector<HandoffJob> jobs,
                       HandoffWay way, HandoffOptions options)
    : model_(model),
      way_(way),
      mailbox_(new(memory.mapped(sizeof(Mailbox))) Mailbox),
      jobs_(std::move(jobs)),
      captured_jobs_(jobs_) {
  if (way == HandoffWay::kHostFunction) {
    for (const HandoffJob& job : jobs_) guarded_.push_back({job, &error_});
    for (size_t i = 0; i < jobs_.size(); ++i)
      captured_jobs_[i] = {Guarded::run, &guarded_[i], 0, jobs_[i].name};
  }
  coordinator_ = std::make_unique<Coordinator>(*mailbox_, captured_jobs_, options);
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");  // memory was zeroed on another stream
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  stream_ = stream;
  cudaEvent_t event;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
  event_ = event;
}

CardRunner::~CardRunner() {
  cudaStreamSynchronize(cuda(stream_));
  cudaStreamDestroy(cuda(stream_));
  cudaEventDestroy(static_cast<cudaEvent_t>(event_));
}

StepGraph& CardRunner::graph_of(const StepSize& size) {
  std::unique_ptr<StepGraph>& graph = graphs_[{size.rows, size.sample}];
  if (!graph) {
    // Kernels are loaded when they are first launched, which must not happen inside a capture, nor
    // while the card waits for the CPU.
    Eagerly first(model_, size, nullptr, cuda(stream_), static_cast<cudaEvent_t>(event_));
    record_step(model_.step_layers(size), size.sample, first);
    check(cudaStreamSynchronize(cuda(stream_)), "a step's kernels");
    const auto launches = [this, size](Stream stream, StepOp op, int layer) {
      model_.launch(stream, op, layer, size);
    };
    graph = std::make_unique<StepGraph>(model_.step_layers(size), size.sample, launches, *mailbox_,
                                        captured_jobs_, way_);
  }
  return *graph;
}

void CardRunner::run_eagerly(const StepSize& size) {
  Eagerly recorder(model_, size, &jobs_, cuda(stream_), static_cast<cudaEvent_t>(event_));
  try {
    record_step(model_.step_layers(size), size.sample, recorder);
  } catch (...) {
    cudaStreamSynchronize(cuda(stream_));
    throw;
  }
  check(cudaStreamSynchronize(cuda(stream_)), "a step's kernels");
}

void CardRunner::step(const StepSize& size) {
  if (!size.graph || !size.is_decode(model_.shape().vocab > 0)) return run_eagerly(size);
  StepGraph& graph = graph_of(size);
  nodes_ = graph.nodes();
  coordinator_->begin_step();
  graph.launch(stream_);
  coordinator_->end_step([this] { return stream_done(stream_); });
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

}  // namespace kt::cuda
