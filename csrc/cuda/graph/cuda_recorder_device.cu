#include <cuda.h>

#include <vector>

#include "cuda/common/cuda_error.h"
#include "cuda/graph/cuda_recorder.h"

namespace kt::cuda {

namespace {

// Driver functions are asked of the runtime, so that the library loads where no driver is.
template <class Function>
Function driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  check(cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found), name);
  if (found != cudaDriverEntryPointSuccess || !function)
    throw CudaError(concat("this driver has no ", name));
  return reinterpret_cast<Function>(function);
}

using MemoryOperation = CUresult (*)(CUstream, CUdeviceptr, cuuint64_t, unsigned);

struct MemoryOperations {
  MemoryOperation write = driver_function<MemoryOperation>("cuStreamWriteValue64");
  MemoryOperation wait = driver_function<MemoryOperation>("cuStreamWaitValue64");
};

void check_driver(CUresult status, const char* call) {
  if (status != CUDA_SUCCESS) throw CudaError(concat(call, ": driver status ", int{status}));
}

CUdeviceptr device_address(std::atomic<uint64_t>& word) {
  void* address = nullptr;
  check(cudaHostGetDevicePointer(&address, &word, 0), "cudaHostGetDevicePointer");
  return reinterpret_cast<CUdeviceptr>(address);
}

void CUDART_CB run_host_job(void* job) {
  // An exception must not cross the driver: jobs that may throw keep theirs (CardRunner's do).
  const HandoffJob& j = *static_cast<const HandoffJob*>(job);
  try {
    j.run(j.context, j.argument);
  } catch (...) {
  }
}

class CaptureRecorder : public StepRecorder {
 public:
  CaptureRecorder(cudaStream_t main, cudaStream_t side, const StepGraph::Launches& launches,
                  Mailbox& mailbox, std::vector<HandoffJob>& jobs, HandoffWay way,
                  std::vector<cudaEvent_t>& events)
      : streams_{main, side}, launches_(launches), jobs_(jobs), way_(way), events_(events) {
    if (way == HandoffWay::kMemoryOperations) {
      go_ = device_address(mailbox.go);
      done_ = device_address(mailbox.done);
      operations_ = std::make_unique<MemoryOperations>();
    }
  }
  void run(StepStream stream, StepOp op, int layer) override {
    try {
      launches_(streams_[int(stream)], op, layer);
    } catch (const CudaError& error) {
      throw CudaError(concat("capturing ", name_of(op), " of layer ", layer, ": ", error.what()));
    }
  }
  void order(StepStream from, StepStream to) override {
    cudaEvent_t event;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
    events_.push_back(event);
    check(cudaEventRecord(event, streams_[int(from)]), "cudaEventRecord");
    check(cudaStreamWaitEvent(streams_[int(to)], event, 0), "cudaStreamWaitEvent");
  }
  void post(uint64_t job) override {
    if (way_ == HandoffWay::kMemoryOperations)
      check_driver(operations_->write(streams_[0], go_, job, CU_STREAM_WRITE_VALUE_DEFAULT),
                   "cuStreamWriteValue64");
    else if (job > jobs_.size())
      throw InvalidArgument(concat("job ", job, " of ", jobs_.size()));
    else
      // A branch of its own, so that the main stream goes on meanwhile.
      host_branch(job);
  }
  void await(uint64_t job) override {
    if (way_ == HandoffWay::kMemoryOperations) {
      check_driver(operations_->wait(streams_[0], done_, job, CU_STREAM_WAIT_VALUE_EQ),
                   "cuStreamWaitValue64");
      check_driver(operations_->write(streams_[0], done_, 0, CU_STREAM_WRITE_VALUE_DEFAULT),
                   "cuStreamWriteValue64");
    } else {
      check(cudaStreamWaitEvent(streams_[0], host_done_, 0), "cudaStreamWaitEvent");
    }
  }
  ~CaptureRecorder() override {
    if (host_) cudaStreamDestroy(host_);
  }

 private:
  void host_branch(uint64_t job) {
    if (!host_) check(cudaStreamCreateWithFlags(&host_, cudaStreamNonBlocking), "cudaStreamCreate");
    cudaEvent_t begin;
    check(cudaEventCreateWithFlags(&begin, cudaEventDisableTiming), "cudaEventCreate");
    events_.push_back(begin);
    check(cudaEventRecord(begin, streams_[0]), "cudaEventRecord");
    check(cudaStreamWaitEvent(host_, begin, 0), "cudaStreamWaitEvent");
    check(cudaLaunchHostFunc(host_, run_host_job, &jobs_[job - 1]), "cudaLaunchHostFunc");
    check(cudaEventCreateWithFlags(&host_done_, cudaEventDisableTiming), "cudaEventCreate");
    events_.push_back(host_done_);
    check(cudaEventRecord(host_done_, host_), "cudaEventRecord");
  }

  cudaStream_t streams_[2];
  cudaStream_t host_ = nullptr;
  const StepGraph::Launches& launches_;
  std::vector<HandoffJob>& jobs_;
  HandoffWay way_;
  std::vector<cudaEvent_t>& events_;
  cudaEvent_t host_done_ = nullptr;
  CUdeviceptr go_ = 0, done_ = 0;
  std::unique_ptr<MemoryOperations> operations_;
};

}  // namespace

struct StepGraph::State {
  cudaStream_t main = nullptr, side = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  std::vector<cudaEvent_t> events;
  std::vector<HandoffJob> jobs;  // host functions point here
  size_t nodes = 0;
  ~State() {
    if (exec) cudaGraphExecDestroy(exec);
    if (graph) cudaGraphDestroy(graph);
    for (cudaEvent_t event : events) cudaEventDestroy(event);
    if (main) cudaStreamDestroy(main);
    if (side) cudaStreamDestroy(side);
  }
};

StepGraph::StepGraph(const std::vector<StepLayer>& layers, bool sample, const Launches& launches,
                     Mailbox& mailbox, const std::vector<HandoffJob>& jobs, HandoffWay way)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.jobs = jobs;
  check(cudaStreamCreateWithFlags(&s.main, cudaStreamNonBlocking), "cudaStreamCreate");
  check(cudaStreamCreateWithFlags(&s.side, cudaStreamNonBlocking), "cudaStreamCreate");
  CaptureRecorder recorder(s.main, s.side, launches, mailbox, s.jobs, way, s.events);
  check(cudaStreamBeginCapture(s.main, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  try {
    record_step(layers, sample, recorder);
  } catch (...) {
    cudaStreamEndCapture(s.main, &s.graph);
    throw;
  }
  check(cudaStreamEndCapture(s.main, &s.graph), "cudaStreamEndCapture");
  check(cudaGraphGetNodes(s.graph, nullptr, &s.nodes), "cudaGraphGetNodes");
  check(cudaGraphInstantiate(&s.exec, s.graph, 0), "cudaGraphInstantiate");
}

StepGraph::~StepGraph() = default;

void StepGraph::launch(Stream stream) {
  check(cudaGraphLaunch(state_->exec, static_cast<cudaStream_t>(stream)), "cudaGraphLaunch");
}

size_t StepGraph::nodes() const { return state_->nodes; }

bool stream_done(Stream stream) {
  const cudaError_t status = cudaStreamQuery(static_cast<cudaStream_t>(stream));
  if (status == cudaErrorNotReady) return false;
  check(status, "cudaStreamQuery");
  return true;
}

HandoffWay probe_handoff() {
  Mailbox* mailbox = nullptr;
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, sizeof(Mailbox), cudaHostAllocMapped), "cudaHostAlloc",
        sizeof(Mailbox));
  mailbox = new (memory) Mailbox;
  bool works = false;
  try {
    const auto nothing = [](Stream, StepOp, int) {};
    const std::vector<HandoffJob> jobs{{[](void*, int) {}, nullptr, 0, "probe"}};
    StepLayer layer;
    layer.moe = layer.cpu_experts = true;
    const StepGraph graph({layer}, false, nothing, *mailbox, jobs, HandoffWay::kMemoryOperations);
    Coordinator coordinator(*mailbox, jobs, {});
    cudaStream_t stream;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    coordinator.begin_step();
    const_cast<StepGraph&>(graph).launch(stream);
    coordinator.end_step([&] { return stream_done(stream); });
    works = coordinator.jobs_run() == 1;
    cudaStreamDestroy(stream);
  } catch (const Error&) {
    cudaGetLastError();  // refused: the other way is left
  }
  cudaFreeHost(memory);
  return works ? HandoffWay::kMemoryOperations : HandoffWay::kHostFunction;
}

}  // namespace kt::cuda
