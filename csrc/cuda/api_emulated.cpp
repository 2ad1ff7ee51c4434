// What of the C surface asks the card (api_device.cu), for the emulated kernels: a card of four
// multiprocessors whose memory is checked, and a stream that is a thread.
#include <cstdio>
#include <map>
#include <memory>
#include <vector>

#include "base/os.h"
#include "cuda/api.h"
#include "cuda/api_guard.h"
#include "cuda/common/emulator.h"
#include "cuda/graph/handoff.h"

using namespace kt::cuda;

namespace {

std::map<void*, std::unique_ptr<emulated::RawBuffer>>& memories() {
  static std::map<void*, std::unique_ptr<emulated::RawBuffer>> all;
  return all;
}

}  // namespace

int kt_cuda_device(int, char* name, int* sms, int* arch, size_t* memory, size_t* free_memory) {
  std::snprintf(name, 256, "emulated");
  *sms = 4, *arch = 90;
  *memory = *free_memory = size_t{1} << 30;
  return 0;
}

int kt_cuda_allocate(size_t bytes, void** memory) {
  return guarded([&] {
    auto buffer = std::make_unique<emulated::RawBuffer>(bytes);
    buffer->mark_written(0, bytes);  // by the caller, before a kernel reads it
    *memory = buffer->data();
    memories()[*memory] = std::move(buffer);
  });
}

int kt_cuda_free(void* memory) {
  return guarded([&] { memories().erase(memory); });
}

int kt_cuda_handoff_bench(int layers, int steps, int* way, double* microseconds) {
  return guarded([&] {
    *way = 0;
    Mailbox mailbox;
    std::vector<double> times;
    times.reserve(layers + 1);
    const auto note = [](void* context, int) {
      static_cast<std::vector<double>*>(context)->push_back(kt::os::seconds());
    };
    const std::vector<HandoffJob> jobs(layers + 1, {note, &times, 0, "an empty job"});
    Coordinator coordinator(mailbox, jobs, {});
    for (int step = 0; step < steps; ++step) {
      times.clear();
      std::atomic<bool> done{false};
      coordinator.begin_step();
      kt::os::Thread stream([&] {
        for (uint64_t job = 1; job <= jobs.size(); ++job) {
          mailbox.go.store(job, std::memory_order_release);
          while (mailbox.done.load(std::memory_order_acquire) != job) kt::os::yield();
          mailbox.done.store(0, std::memory_order_release);
        }
        done.store(true, std::memory_order_release);
      });
      coordinator.end_step([&] { return done.load(std::memory_order_acquire); });
      stream.join();
      for (int i = 0; i < layers; ++i)
        microseconds[step * layers + i] = (times[i + 1] - times[i]) * 1e6;
    }
  });
}
