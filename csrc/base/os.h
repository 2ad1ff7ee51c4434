// What the core needs of the operating system beyond files (those are in os_file.h): which cores it
// may use, pinned threads, waiting, and large memory. Nothing else in csrc/ calls the system.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace kt::os {

using Thread = std::thread;
using RecursiveMutex = std::recursive_mutex;
using RecursiveLock = std::lock_guard<RecursiveMutex>;
using Mutex = std::mutex;
using Lock = std::lock_guard<Mutex>;

/// One logical CPU this process may run on.
struct Cpu {
  int id;    // the kernel's number
  int core;  // physical core, numbered across packages
  int node;  // NUMA node, 0 where the system has none
};

/// The CPUs of this process's affinity mask, in order of id.
std::vector<Cpu> usable_cpus();

/// The first logical CPU of every usable physical core: where workers are pinned.
std::vector<Cpu> usable_cores();

/// CPUs granted by the cgroup's quota, rounded up; 0 where there is no quota.
int cgroup_cpu_quota();

/// Binds the calling thread to one logical CPU. A refusal is ignored: pinning is an optimisation.
void pin_current_thread(int cpu);

/// Sleeps while `word` still holds `expected`; may wake without cause.
void wait_on(std::atomic<uint32_t>& word, uint32_t expected);

/// Wakes every thread sleeping in wait_on for this word.
void wake_all(std::atomic<uint32_t>& word);

/// One short pause inside a spin loop.
void spin_pause();

/// Lets another thread that wants this core have it.
void yield();

inline constexpr size_t kHugePage = 2u << 20;

/// Zeroed anonymous memory, page by page as it is first written. From 2 MiB on it begins on a huge
/// page, and its pages are huge where the system grants them.
class Memory {
 public:
  Memory() = default;
  /// Throws SystemError with the byte count where the system has no such memory.
  explicit Memory(size_t bytes);
  /// The same on one NUMA node, as long as that has room; node < 0: where it is first written.
  Memory(size_t bytes, int node);
  ~Memory();
  Memory(Memory&& other) noexcept;
  Memory& operator=(Memory&& other) noexcept;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

/// What the system and this process's groups grant of physical memory, in bytes.
struct MemoryInfo {
  uint64_t total;      // of the machine, or of the tightest group
  uint64_t available;  // could be taken now: free, or holding file pages that can be dropped
  uint64_t swap_used;
  bool is_grouped;       // a group's limit is below the machine's memory
  bool numa_balancing;   // the kernel moves pages between nodes by its own reckoning
};
MemoryInfo memory_info();

/// Bytes of a page of memory.
size_t page_size();

/// Bytes this process may lock in memory (RLIMIT_MEMLOCK); UINT64_MAX: no limit.
uint64_t lock_limit();

/// The value of an environment variable, empty where it is not set.
std::string environment(const char* name);

/// Seconds on a clock that never jumps.
double seconds();

/// Asks the kernel for AMX tile state; true where the CPU has AMX and permission was given.
bool request_amx();

}  // namespace kt::os
