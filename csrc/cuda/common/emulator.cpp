#include "cuda/common/emulator.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <exception>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <utility>

#include "base/os.h"
#include "cuda/common/fibre.h"

namespace kt::cuda::emulated {

// ---- device memory ----

class Registry {
 public:
  void add(RawBuffer* buffer) { by_address_[buffer->data_] = buffer; }
  void remove(RawBuffer* buffer) {
    by_address_.erase(buffer->data_);
    for (RawBuffer*& last : last_)
      if (last == buffer) last = nullptr;
  }
  RawBuffer* find(const void* address, size_t bytes) {
    const auto* at = static_cast<const uint8_t*>(address);
    for (RawBuffer* b : last_)
      if (b && holds(b, at, bytes)) return b;
    const auto behind = by_address_.upper_bound(at);
    if (behind == by_address_.begin()) return nullptr;
    RawBuffer* const b = std::prev(behind)->second;
    if (!holds(b, at, bytes)) return nullptr;
    last_[next_++ % 4] = b;
    return b;
  }
  static uint8_t* shadow(RawBuffer* b, const void* address) {
    return b->shadow_.data() + (static_cast<const uint8_t*>(address) - b->data_);
  }

 private:
  static bool holds(const RawBuffer* b, const uint8_t* at, size_t bytes) {
    return at >= b->data_ && at + bytes <= b->data_ + b->size_;
  }
  std::map<const uint8_t*, RawBuffer*> by_address_;
  RawBuffer* last_[4] = {};  // a kernel has few in use
  unsigned next_ = 0;
};

namespace {
Registry registry;  // of all threads: they take turns
thread_local Options options_of_thread;
thread_local Counts counts_of_thread;
}  // namespace

Options& options() { return options_of_thread; }
Counts& counts() { return counts_of_thread; }

// 256-byte alignment as cudaMalloc gives; unwritten bytes hold a pattern that is NaN as a float, a
// half and a bfloat16.
RawBuffer::RawBuffer(size_t bytes) : memory_(bytes + 256, 0xFF), shadow_(bytes, 0), size_(bytes) {
  const auto at = reinterpret_cast<uintptr_t>(memory_.data());
  data_ = memory_.data() + (round_up<uintptr_t>(at, 256) - at);
  registry.add(this);
}

RawBuffer::~RawBuffer() { registry.remove(this); }

void RawBuffer::mark_written(size_t begin, size_t bytes) {
  std::fill_n(shadow_.begin() + begin, bytes, 1);
}

bool RawBuffer::written(size_t begin, size_t bytes) const {
  return std::all_of(shadow_.begin() + begin, shadow_.begin() + begin + bytes,
                     [](uint8_t b) { return b == 1; });
}

// ---- one block ----

namespace {

// Two bytes of shared memory: who wrote and who read them last, and when. An epoch is the time
// between two barriers; epochs only grow, also over blocks.
struct Cell {
  uint32_t write_epoch = 0, write_warp_epoch = 0, read_epoch = 0, read_warp_epoch = 0;
  uint16_t writer = 0, reader = 0;
  uint16_t copier = 0;  // thread + 1 whose asynchronous copy is under way
  bool atomic = false;  // the last writes were atomic ones
};
constexpr uint16_t kSeveralWriters = 0xFFFF;
constexpr uint16_t kSeveralWarps = 0xFFFF;   // readers
constexpr uint16_t kSeveralOfWarp = 0x8000;  // + warp
constexpr size_t kCellBytes = 2;

struct Copy {
  uint8_t* target;
  const uint8_t* source;
  uint32_t bytes;
  bool zeros;
};

enum class State : uint8_t { kReady, kAtBarrier, kAtCollective, kDone };

struct Thread {
  Fibre fibre;
  State state = State::kReady;
  Site site{"", 0};
  std::vector<Copy> open;                // of the group not yet committed
  std::deque<std::vector<Copy>> groups;  // committed, oldest first
};

struct Warp {
  const void* in[32];
  void* out[32];
  int arrived = 0;
  Site site{"", 0};
  Compute compute = nullptr;
  uint32_t epoch = 1;
};

class Block {
 public:
  Block(const LaunchShape& shape, const std::function<void()>& body)
      : shape_(shape), body_(body), threads_(shape.threads), warps_(shape.threads / 32) {
    // Aligned as a kernel may expect of dynamic shared memory, then guarded by the bounds check.
    shared_memory_.resize(shape.shared_bytes + 1024);
    const auto at = reinterpret_cast<uintptr_t>(shared_memory_.data());
    shared_ = shared_memory_.data() + (round_up<uintptr_t>(at, 1024) - at);
    cells_.resize(div_up<size_t>(shape.shared_bytes, kCellBytes));
    order_.resize(shape.threads);
    std::iota(order_.begin(), order_.end(), 0);
    if (options().order == Order::kReverse) std::reverse(order_.begin(), order_.end());
    if (options().order == Order::kShuffled) {
      std::mt19937 random(shape.threads);
      std::shuffle(order_.begin(), order_.end(), random);
      // Lanes of a warp stay together, or every collective would cost a round over the block.
      std::stable_sort(order_.begin(), order_.end(), [](int a, int b) {
        return (a / 32 * 7919) % 1009 < (b / 32 * 7919) % 1009;
      });
    }
  }

  void run(unsigned x, unsigned y, unsigned z);

  Place place{};
  uint8_t* shared() const { return shared_; }

  void barrier(Site site);
  void meet(const void* in, void* out, Compute compute, bool orders_memory, Site site);
  void check_shared(const void* address, size_t bytes, size_t alignment, bool write, Site site,
                    bool atomic = false);
  void copy(void* target, const void* source, size_t bytes, bool zeros, Site site);
  void commit() { me().groups.push_back(std::exchange(me().open, {})); }
  void wait(int groups_left);

  template <class... Parts>
  [[noreturn]] void fail(Site site, const Parts&... parts) const {
    throw EmulationError(concat(site.file, ":", site.line, ": block (", place.block_x, ",",
                                place.block_y, ",", place.block_z, ") thread ", place.thread, ": ",
                                parts...));
  }

 private:
  static void thread_entry(void* argument);
  Thread& me() { return threads_[place.thread]; }
  Warp& my_warp() { return warps_[place.thread / 32]; }
  void block_here(State state, Site site);
  void deadlock();
  bool ordered_before_me(unsigned thread, uint32_t epoch, uint32_t warp_epoch);
  void touch(size_t cell, bool write, bool atomic, Site site);
  void finish(const Copy& copy);

  LaunchShape shape_;
  const std::function<void()>& body_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<unsigned> order_;
  std::vector<uint8_t> shared_memory_;
  uint8_t* shared_;
  std::vector<Cell> cells_;
  uint32_t epoch_ = 1, first_epoch_ = 1;
  unsigned at_barrier_ = 0;
  Site barrier_site_{"", 0};
  Fibre scheduler_;
  std::exception_ptr error_;
};

thread_local Block* block = nullptr;

void Block::thread_entry(void* argument) {
  Block& self = *static_cast<Block*>(argument);
  try {
    self.body_();
  } catch (...) {
    if (!self.error_) self.error_ = std::current_exception();
  }
  Thread& me = self.me();
  me.state = State::kDone;
  Fibre::leave(me.fibre, self.scheduler_);
}

void Block::run(unsigned x, unsigned y, unsigned z) {
  ++counts().blocks;
  first_epoch_ = ++epoch_;
  at_barrier_ = 0;
  for (Warp& warp : warps_) warp.arrived = 0;
  place = {0, x, y, z, shape_.grid_x, shape_.grid_y, shape_.grid_z, shape_.threads};
  Fibre::adopt_caller(scheduler_);
  for (Thread& thread : threads_) {
    thread.state = State::kReady;
    thread.open.clear();
    thread.groups.clear();
    thread.fibre.start(&Block::thread_entry, this);
  }
  for (unsigned done = 0; done < shape_.threads;) {
    bool moved = false;
    for (size_t first = 0; first < order_.size(); first += 32) {
      // A warp goes as far as it can before the next one gets its turn.
      for (bool warp_moved = true; warp_moved;) {
        warp_moved = false;
        for (size_t i = first; i < first + 32; ++i) {
          Thread& thread = threads_[order_[i]];
          if (thread.state != State::kReady) continue;
          place.thread = order_[i];
          ++counts().switches;
          Fibre::transfer(scheduler_, thread.fibre);
          if (error_) std::rethrow_exception(error_);
          if (thread.state == State::kDone) ++done;
          moved = warp_moved = true;
        }
      }
    }
    if (!moved) deadlock();
  }
}

void Block::deadlock() {
  std::string waiting;
  int listed = 0, done = 0;
  for (unsigned t = 0; t < shape_.threads; ++t) {
    const Thread& thread = threads_[t];
    if (thread.state == State::kDone) {
      ++done;
    } else if (listed++ < 4) {
      waiting += concat(listed > 1 ? "; " : "", "thread ", t, " at ",
                        thread.state == State::kAtBarrier ? "the block's barrier " : "a warp's ",
                        thread.site.file, ":", thread.site.line);
    }
  }
  throw EmulationError(concat("divergent barrier in block (", place.block_x, ",", place.block_y,
                              ",", place.block_z, "): ", done, " of ", shape_.threads,
                              " threads are done, waiting: ", waiting));
}

void Block::block_here(State state, Site site) {
  Thread& thread = me();
  const unsigned number = place.thread;
  thread.state = state;
  thread.site = site;
  Fibre::transfer(thread.fibre, scheduler_);
  place.thread = number;
}

void Block::barrier(Site site) {
  if (at_barrier_ == 0) barrier_site_ = site;
  if (site.line != barrier_site_.line || strcmp(site.file, barrier_site_.file) != 0)
    fail(site, "divergent barrier: others of the block wait at ", barrier_site_.file, ":",
         barrier_site_.line);
  if (++at_barrier_ < shape_.threads) return block_here(State::kAtBarrier, site);
  at_barrier_ = 0;
  ++epoch_;
  for (Thread& thread : threads_)
    if (thread.state == State::kAtBarrier) thread.state = State::kReady;
}

void Block::meet(const void* in, void* out, Compute compute, bool orders_memory, Site site) {
  Warp& warp = my_warp();
  const unsigned lane = place.thread % 32;
  if (warp.arrived == 0) warp.site = site, warp.compute = compute;
  if (site.line != warp.site.line || strcmp(site.file, warp.site.file) != 0 ||
      compute != warp.compute)
    fail(site, "divergent warp: other lanes wait at ", warp.site.file, ":", warp.site.line);
  warp.in[lane] = in;
  warp.out[lane] = out;
  if (++warp.arrived < 32) return block_here(State::kAtCollective, site);
  warp.arrived = 0;
  if (compute) compute(warp.in, warp.out);
  if (orders_memory) ++warp.epoch;
  const unsigned first = place.thread - lane;
  for (unsigned t = first; t < first + 32; ++t)
    if (threads_[t].state == State::kAtCollective) threads_[t].state = State::kReady;
}

bool Block::ordered_before_me(unsigned thread, uint32_t epoch, uint32_t warp_epoch) {
  return thread == place.thread || epoch < epoch_ ||
         (thread / 32 == place.thread / 32 && warp_epoch < my_warp().epoch);
}

void Block::touch(size_t index, bool write, bool atomic, Site site) {
  Cell& cell = cells_[index];
  const uint16_t self = static_cast<uint16_t>(place.thread), warp = self / 32;
  const uint32_t warp_epoch = my_warp().epoch;
  const size_t byte = index * kCellBytes;
  if (cell.copier)
    fail(site, write ? "writes" : "reads", " shared byte ", byte,
         " before the asynchronous copy of thread ", cell.copier - 1, " was waited for");
  const bool initialised = cell.write_epoch >= first_epoch_;
  if (!write) {
    if (!initialised) fail(site, "reads shared byte ", byte, ", which nobody wrote");
    if (!ordered_before_me(cell.writer, cell.write_epoch, cell.write_warp_epoch))
      fail(site, "reads shared byte ", byte, " that thread ", cell.writer,
           " wrote with no barrier between");
    if (cell.read_epoch != epoch_ || cell.reader == self) {
      cell.reader = self;
    } else {
      const bool same_warp = cell.reader == (kSeveralOfWarp | warp) ||
                             (cell.reader < kSeveralOfWarp && cell.reader / 32 == warp);
      cell.reader = same_warp ? kSeveralOfWarp | warp : kSeveralWarps;
    }
    cell.read_epoch = epoch_;
    cell.read_warp_epoch = warp_epoch;
    return;
  }
  const bool ordered = ordered_before_me(cell.writer, cell.write_epoch, cell.write_warp_epoch);
  if (atomic && !initialised) fail(site, "adds to shared byte ", byte, ", which nobody wrote");
  if (initialised && !ordered && !(atomic && cell.atomic))
    fail(site, "writes shared byte ", byte, " that thread ", cell.writer,
         " wrote with no barrier between");
  if (cell.read_epoch == epoch_ && cell.reader != self) {
    const bool same_warp = cell.reader == (kSeveralOfWarp | warp) ||
                           (cell.reader < kSeveralOfWarp && cell.reader / 32 == warp);
    if (!same_warp || cell.read_warp_epoch >= warp_epoch)
      fail(site, "writes shared byte ", byte, " that thread ",
           cell.reader >= kSeveralOfWarp ? -1 : int{cell.reader},
           " (-1: several) read with no barrier between");
  }
  cell.write_epoch = epoch_;
  cell.write_warp_epoch = warp_epoch;
  // Who adds reads the sum behind a barrier only: others may not have added yet.
  cell.writer = atomic ? kSeveralWriters : self;
  cell.atomic = atomic;
}

void Block::check_shared(const void* address, size_t bytes, size_t alignment, bool write,
                         Site site, bool atomic) {
  const auto at = reinterpret_cast<intptr_t>(address) - reinterpret_cast<intptr_t>(shared_);
  if (at < 0 || at + bytes > shape_.shared_bytes)
    fail(site, write ? "writes" : "reads", " shared bytes ", at, "..", at + intptr_t(bytes), " of ",
         shape_.shared_bytes);
  if (at % alignment) fail(site, "shared byte ", at, " is not aligned to ", alignment);
  for (size_t i = at / kCellBytes; i < (at + bytes) / kCellBytes; ++i)
    touch(i, write, atomic, site);
}

void Block::copy(void* target, const void* source, size_t bytes, bool zeros, Site site) {
  check_shared(target, bytes, bytes, true, site);
  if (!zeros) check_global(source, bytes, bytes, false, site);
  const Copy copy{static_cast<uint8_t*>(target), static_cast<const uint8_t*>(source),
                  static_cast<uint32_t>(bytes), zeros};
  if (options().arch < 80) return finish(copy);
  const size_t first = (copy.target - shared_) / kCellBytes;
  for (size_t i = first; i < first + bytes / kCellBytes; ++i)
    cells_[i].copier = static_cast<uint16_t>(place.thread + 1);
  me().open.push_back(copy);
}

void Block::finish(const Copy& copy) {
  if (copy.zeros) {
    memset(copy.target, 0, copy.bytes);
  } else {
    memcpy(copy.target, copy.source, copy.bytes);
  }
  const size_t first = (copy.target - shared_) / kCellBytes;
  for (size_t i = first; i < first + copy.bytes / kCellBytes; ++i) {
    Cell& cell = cells_[i];
    cell.copier = 0;
    cell.write_epoch = epoch_;
    cell.write_warp_epoch = my_warp().epoch;
    cell.writer = static_cast<uint16_t>(place.thread);
  }
}

void Block::wait(int groups_left) {
  auto& groups = me().groups;
  while (groups.size() > static_cast<size_t>(groups_left)) {
    for (const Copy& copy : groups.front()) finish(copy);
    groups.pop_front();
  }
}

}  // namespace

namespace {

/// What every kernel of the process cost; written down at its end.
class KernelTable {
 public:
  ~KernelTable() {
    const std::string path = os::environment("KT_EMULATED_KERNELS");
    if (path.empty() || all_.empty()) return;
    std::ofstream file(path, std::ios::app);
    std::string text;  // at once: other processes append too
    for (const auto& [kernel, use] : all_)
      text += concat(kernel, "\t", use.launches, "\t", use.blocks, "\t", use.seconds, "\n");
    file << text;
  }
  void add(const char* kernel, int64_t blocks, double seconds) {
    const os::Lock lock(mutex_);
    Use& use = all_[kernel];
    ++use.launches, use.blocks += blocks, use.seconds += seconds;
  }

 private:
  struct Use {
    int64_t launches = 0, blocks = 0;
    double seconds = 0;
  };
  os::Mutex mutex_;
  std::map<std::string, Use> all_;
};
KernelTable kernel_table;

}  // namespace

void run_grid(const char* kernel, const LaunchShape& shape, const std::function<void()>& body) {
  KT_CHECK(shape.threads > 0 && shape.threads <= 1024 && shape.threads % 32 == 0, "a block of ",
           shape.threads, " threads; a multiple of 32 up to 1024 is needed");
  KT_CHECK(shape.grid_x > 0 && shape.grid_y > 0 && shape.grid_z > 0, "empty grid ", shape.grid_x,
           " x ", shape.grid_y, " x ", shape.grid_z);
  KT_CHECK(shape.grid_y < 65536 && shape.grid_z < 65536, "grid ", shape.grid_x, " x ", shape.grid_y,
           " x ", shape.grid_z, " exceeds 65535 in y or z");
  const unsigned most = most_shared_bytes(options().arch);
  KT_CHECK(shape.shared_bytes <= most, "a block of ", shape.shared_bytes,
           " bytes of shared memory; compute capability ", options().arch / 10, ".",
           options().arch % 10, " has ", most);
  KT_CHECK(block == nullptr, "a kernel cannot launch another");
  ++counts().launches;
  const double begin = os::seconds();
  Block one(shape, body);
  struct Current {
    explicit Current(Block* b) { block = b; }
    ~Current() { block = nullptr; }
  } current(&one);
  for (unsigned z = 0; z < shape.grid_z; ++z)
    for (unsigned y = 0; y < shape.grid_y; ++y)
      for (unsigned x = 0; x < shape.grid_x; ++x) one.run(x, y, z);
  kernel_table.add(kernel, int64_t{shape.grid_x} * shape.grid_y * shape.grid_z,
                   os::seconds() - begin);
}

const Place& place() { return block->place; }
void block_barrier(Site site) { block->barrier(site); }
void warp_barrier(Site site) { block->meet(nullptr, nullptr, nullptr, true, site); }
void collective(const void* in, void* out, Compute compute, Site site) {
  block->meet(in, out, compute, false, site);
}
uint8_t* shared_base() { return block->shared(); }
void check_shared(const void* address, size_t bytes, size_t alignment, bool write, Site site) {
  block->check_shared(address, bytes, alignment, write, site);
}

void check_shared_atomic(const void* address, size_t bytes, size_t alignment, Site site) {
  block->check_shared(address, bytes, alignment, true, site, true);
}

void check_global(const void* address, size_t bytes, size_t alignment, bool write, Site site) {
  RawBuffer* buffer = registry.find(address, bytes);
  if (!buffer) block->fail(site, write ? "writes" : "reads", " device memory outside any buffer");
  const size_t at = static_cast<const uint8_t*>(address) - buffer->data();
  if (at % alignment)
    block->fail(site, "device byte ", at, " of a buffer is not aligned to ", alignment);
  uint8_t* shadow = Registry::shadow(buffer, address);
  if (write) {
    memset(shadow, 1, bytes);
    return;
  }
  for (size_t i = 0; i < bytes; ++i)
    if (!shadow[i])
      block->fail(site, "reads byte ", at + i, " of a buffer of ", buffer->size(),
                  ", which nobody wrote");
}

void async_copy(void* target, const void* source, size_t bytes, bool zeros, Site site) {
  block->copy(target, source, bytes, zeros, site);
}
void async_commit() { block->commit(); }
void async_wait(int groups_left) { block->wait(groups_left); }

}  // namespace kt::cuda::emulated
