#include <cstdio>
#include <vector>

#include "cuda/api.h"
#include "cuda/api_guard.h"
#include "cuda/common/cuda_error.h"
#include "cuda/graph/cuda_recorder.h"

using namespace kt::cuda;

int kt_cuda_device(int device, char* name, int* sms, int* arch, size_t* memory,
                   size_t* free_memory) {
  return guarded([&] {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    std::snprintf(name, 256, "%s", properties.name);
    *sms = properties.multiProcessorCount;
    *arch = properties.major * 10 + properties.minor;
    check(cudaSetDevice(device), "cudaSetDevice");
    check(cudaMemGetInfo(free_memory, memory), "cudaMemGetInfo");
  });
}

int kt_cuda_allocate(size_t bytes, void** memory) {
  return guarded([&] { check(cudaMalloc(memory, bytes), "cudaMalloc", bytes); });
}
int kt_cuda_free(void* memory) {
  return guarded([&] { check(cudaFree(memory), "cudaFree"); });
}

namespace {

/// When every job of a step began; room is reserved before.
struct Times {
  std::vector<double> at;
};
void note_time(void* times, int) { static_cast<Times*>(times)->at.push_back(kt::os::seconds()); }

void time_handoffs(int layers, int steps, HandoffWay way, Mailbox& mailbox, double* microseconds) {
  Times times;
  times.at.reserve(layers + 1);
  const std::vector<HandoffJob> jobs(layers + 1, {note_time, &times, 0, "an empty job"});
  StepLayer layer;
  layer.moe = layer.cpu_experts = true;
  StepGraph graph(
      std::vector<StepLayer>(layers + 1, layer), false, [](Stream, StepOp, int) {}, mailbox, jobs,
      way);
  Coordinator coordinator(mailbox, jobs, {});
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  constexpr int kWarmUp = 5;
  for (int step = -kWarmUp; step < steps; ++step) {
    times.at.clear();
    coordinator.begin_step();
    graph.launch(stream);
    coordinator.end_step([&] { return stream_done(stream); });
    for (int i = 0; step >= 0 && i < layers; ++i)
      microseconds[step * layers + i] = (times.at[i + 1] - times.at[i]) * 1e6;
  }
  cudaStreamDestroy(stream);
}

}  // namespace

int kt_cuda_handoff_bench(int layers, int steps, int* way, double* microseconds) {
  return guarded([&] {
    if (*way < 0) *way = static_cast<int>(probe_handoff());
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, sizeof(Mailbox), cudaHostAllocMapped), "cudaHostAlloc");
    try {
      time_handoffs(layers, steps, static_cast<HandoffWay>(*way), *new (memory) Mailbox,
                    microseconds);
    } catch (...) {
      cudaFreeHost(memory);
      throw;
    }
    cudaFreeHost(memory);
  });
}
