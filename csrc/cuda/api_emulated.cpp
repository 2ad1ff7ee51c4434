// What of the C surface asks the card (api_device.cu), for the emulated kernels: a card of four
// multiprocessors whose memory is checked, and a stream that is a thread.
#include <cstdio>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <vector>

#include "base/os.h"
#include "cuda/api.h"
#include "cuda/api_guard.h"
#include "cuda/common/emulator.h"
#include "cuda/graph/handoff.h"
#include "cuda/graph/step.h"
#include "cuda/model/card.h"
#include "cuda/model/staging.h"

using namespace kt::cuda;

namespace {

std::map<void*, std::unique_ptr<emulated::RawBuffer>>& memories() {
  static std::map<void*, std::unique_ptr<emulated::RawBuffer>> all;
  return all;
}

// As many slots as on a card, but small ones, which emulated experts go around.
constexpr size_t kSlotBytes = 4096;

/// Buffers the emulator watches. Copies of bring() are made as late as a card may make them.
class EmulatedMemory : public Memory, private CopyQueue {
 public:
  void* device(size_t bytes) override { return take(bytes, false); }
  void* mapped(size_t bytes) override { return take(bytes, true); }
  void upload(void* to, const void* from, size_t bytes) override {
    std::memcpy(to, from, bytes);
    mark_written(to, bytes);
  }
  std::string pin(const void* at, size_t bytes) override {
    const auto* const begin = static_cast<const uint8_t*>(at);
    const auto next = pinned_.lower_bound(begin);
    if ((next != pinned_.end() && begin + bytes > next->first) ||
        (next != pinned_.begin() && std::prev(next)->first + std::prev(next)->second > begin))
      return "pinned already";
    pinned_[begin] = bytes;
    return {};
  }
  void unpin(const void* at) noexcept override { pinned_.erase(static_cast<const uint8_t*>(at)); }
  size_t prepare_copies(bool staged) override {
    if (!staged || staging_) return 0;
    CopyQueue& queue = *this;
    staging_ = std::make_unique<Staging>(queue, static_cast<uint8_t*>(mapped(staging_bytes())),
                                         Staging::kSlots, kSlotBytes);
    return staging_bytes();
  }
  void bring(const std::vector<Transfer>& pieces, int half) override {
    if (in_use_[half])
      throw emulated::EmulationError("a copy into a half of the ring that is still in use");
    for (const Transfer& piece : pieces) {
      if (piece.pinned)
        send(piece.to, piece.from, piece.bytes);
      else
        staging_->copy(piece.to, piece.from, piece.bytes);
    }
  }
  void arrived(int half, void*) override {
    send_until(queue_.size());
    in_use_[half] = true;
  }
  void release(int half, void*) override { in_use_[half] = false; }
  void finish_copies() noexcept override { send_until(queue_.size()); }
  void finish(void*) override {}
  void copy(void* to, const void* from, size_t bytes) override {
    std::memcpy(to, from, bytes);
    mark_written(to, bytes);
  }

 private:
  void* take(size_t bytes, bool written) {
    auto buffer = std::make_unique<emulated::RawBuffer>(bytes);
    uint8_t* const at = buffer->data();
    if (written) std::memset(at, 0, bytes), buffer->mark_written(0, bytes);
    buffers_[at] = std::move(buffer);
    return at;
  }
  struct Sent {
    void* to;
    const void* from;
    size_t bytes;
  };
  void send(void* to, const void* from, size_t bytes) override {
    queue_.push_back({to, from, bytes});
  }
  void mark(int slot) override { marks_[slot] = queue_.size(); }
  void wait(int slot) override { send_until(marks_[slot]); }
  void send_until(size_t count) {
    for (; sent_ < count; ++sent_)
      upload(queue_[sent_].to, queue_[sent_].from, queue_[sent_].bytes);
  }
  void mark_written(void* to, size_t bytes) {
    const auto at = static_cast<uint8_t*>(to);
    const auto found = std::prev(buffers_.upper_bound(at));
    found->second->mark_written(at - found->first, bytes);
  }

  std::map<uint8_t*, std::unique_ptr<emulated::RawBuffer>> buffers_;  // by first byte
  std::map<const uint8_t*, size_t> pinned_;
  std::unique_ptr<Staging> staging_;
  std::vector<Sent> queue_;
  size_t sent_ = 0, marks_[Staging::kSlots] = {};
  bool in_use_[2] = {};  // between arrived() and release()
};

/// Operations as they come; jobs go through the mailbox to the coordinator's thread.
class EmulatedRunner : public StepRunner, private StepRecorder {
 public:
  EmulatedRunner(CardModel& model, std::vector<HandoffJob> jobs)
      : model_(model), coordinator_(mailbox_, std::move(jobs), {.hot_seconds = 1e-3}) {}
  void step(const StepSize& size) override {
    size_ = size;
    coordinator_.begin_step();
    record_step(model_.step_layers(size), size.sample, *this);
    coordinator_.end_step([] { return true; });
  }

 private:
  void run(StepStream, StepOp op, int layer) override {
    model_.launch(nullptr, op, layer, size_);
  }
  void order(StepStream, StepStream) override {}
  void post(uint64_t job) override {
    mailbox_.go.store(job, std::memory_order_release);
    coordinator_.begin_step();  // emulated kernels are slow: it has gone to sleep since
  }
  void await(uint64_t job) override {
    while (mailbox_.done.load(std::memory_order_acquire) != job) kt::os::yield();
    mailbox_.done.store(0, std::memory_order_release);
  }

  CardModel& model_;
  StepSize size_;
  Mailbox mailbox_;
  Coordinator coordinator_;
};

}  // namespace

namespace kt::cuda {

int card_count() { return 1; }
CardFacts card_facts(int) { return {"emulated", 4, 90, size_t{1} << 30, size_t{1} << 30}; }
void use_card(int) {}
std::unique_ptr<Memory> open_memory(int) { return std::make_unique<EmulatedMemory>(); }
size_t staging_bytes() { return Staging::kSlots * kSlotBytes; }
std::unique_ptr<StepRunner> make_runner(CardModel& model, Memory&, std::vector<HandoffJob> jobs) {
  return std::make_unique<EmulatedRunner>(model, std::move(jobs));
}

}  // namespace kt::cuda

int kt_cuda_device(int, char* name, int* sms, int* arch, size_t* memory, size_t* free_memory) {
  return guarded([&] {
    const CardFacts facts = card_facts(0);
    std::snprintf(name, 256, "%s", facts.name.c_str());
    *sms = facts.sms, *arch = facts.arch;
    *memory = facts.memory, *free_memory = facts.free;
  });
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
