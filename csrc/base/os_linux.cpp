#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/os.h"

namespace kt::os {
namespace {

int read_int(const std::string& path, int fallback) {
  std::ifstream file(path);
  int value;
  return file >> value ? value : fallback;
}

// NUMA node of a CPU: the one nodeN entry in its sysfs folder.
int node_of(int cpu) {
  const std::string base = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/node";
  for (int node = 0; node < 256; ++node) {
    if (access((base + std::to_string(node)).c_str(), F_OK) == 0) return node;
  }
  return 0;
}

// CPUs one cgroup folder grants; 0 where it sets no limit.
double group_quota(const std::string& folder, bool v2) {
  double quota = 0, period = 0;
  if (v2) {
    std::ifstream file(folder + "/cpu.max");
    if (!(file >> quota >> period)) return 0;  // "max 100000": no limit
  } else {
    quota = read_int(folder + "/cpu.cfs_quota_us", -1);
    period = read_int(folder + "/cpu.cfs_period_us", 100000);
  }
  return quota > 0 && period > 0 ? quota / period : 0;
}

}  // namespace

std::vector<Cpu> usable_cpus() {
  // The mask's size is unknown: grow until the kernel accepts it.
  std::vector<Cpu> cpus;
  for (int count = 1024; count <= (1 << 16); count *= 2) {
    cpu_set_t* mask = CPU_ALLOC(count);
    const size_t bytes = CPU_ALLOC_SIZE(count);
    CPU_ZERO_S(bytes, mask);
    const bool read = sched_getaffinity(0, bytes, mask) == 0;
    if (read) {
      std::map<std::pair<int, int>, int> cores;  // (package, core in package) -> number
      for (int id = 0; id < count; ++id) {
        if (!CPU_ISSET_S(id, bytes, mask)) continue;
        const std::string topology =
            "/sys/devices/system/cpu/cpu" + std::to_string(id) + "/topology/";
        const std::pair<int, int> key{read_int(topology + "physical_package_id", 0),
                                      read_int(topology + "core_id", id)};
        const int core = cores.emplace(key, static_cast<int>(cores.size())).first->second;
        cpus.push_back({id, core, node_of(id)});
      }
    }
    CPU_FREE(mask);
    if (read) break;
  }
  if (cpus.empty()) cpus.push_back({0, 0, 0});
  return cpus;
}

std::vector<Cpu> usable_cores() {
  std::vector<Cpu> cores;
  std::set<int> seen;
  for (const Cpu& cpu : usable_cpus()) {
    if (seen.insert(cpu.core).second) cores.push_back(cpu);
  }
  return cores;
}

namespace {

// Calls visit(folder, is version 2) for the process's group of one controller and every group above
// it: each may set a limit, and the least holds. In a container the path may name folders that only
// the host sees: they are visited too, and nothing is found there.
template <class Visit>
void for_each_group(const std::string& controller, const Visit& visit) {
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool v2 = controllers.empty();
    if (!v2 && (',' + controllers + ',').find(',' + controller + ',') == std::string::npos) continue;
    // Version 1 mounts a folder per controller, under its name or those of the ones it shares with.
    std::string mount = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + controllers;
    if (access(mount.c_str(), F_OK) != 0) mount = "/sys/fs/cgroup/" + controller;
    for (std::string path = line.substr(second + 1);; path.resize(path.rfind('/'))) {
      while (!path.empty() && path.back() == '/') path.pop_back();
      visit(mount + path, v2);
      if (path.rfind('/') == std::string::npos) break;
    }
  }
}

}  // namespace

int cgroup_cpu_quota() {
  double least = 0;
  for_each_group("cpu", [&](const std::string& folder, bool v2) {
    const double cpus = group_quota(folder, v2);
    if (cpus > 0 && (least == 0 || cpus < least)) least = cpus;
  });
  return static_cast<int>(std::ceil(least));
}

void pin_current_thread(int cpu) {
  cpu_set_t* mask = CPU_ALLOC(cpu + 1);
  const size_t bytes = CPU_ALLOC_SIZE(cpu + 1);
  CPU_ZERO_S(bytes, mask);
  CPU_SET_S(cpu, bytes, mask);
  (void)!sched_setaffinity(0, bytes, mask);
  CPU_FREE(mask);
}

void wait_on(std::atomic<uint32_t>& word, uint32_t expected) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, expected, nullptr,
          nullptr, 0);
}

void wake_all(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, 1 << 30, nullptr,
          nullptr, 0);
}

void spin_pause() { __builtin_ia32_pause(); }

void yield() { sched_yield(); }

Memory::Memory(size_t bytes) : Memory(bytes, -1) {}

Memory::Memory(size_t bytes, int node) : size_(bytes) {
  if (bytes == 0) return;
  const bool huge = bytes >= kHugePage;
  const size_t slack = huge ? kHugePage : 0;  // to begin on a huge page; what is over goes back
  void* base = mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED)
    throw SystemError(concat("cannot reserve ", bytes, " bytes of memory: ", std::strerror(errno)));
  data_ = static_cast<uint8_t*>(base);
  if (huge) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(base) % kHugePage) % kHugePage;
    if (before != 0) munmap(data_, before);
    data_ += before;
    const size_t end = (bytes + page - 1) / page * page;
    if (end < bytes + slack - before) munmap(data_ + end, bytes + slack - before - end);
    (void)madvise(data_, bytes, MADV_HUGEPAGE);
  }
  constexpr int kNodes = 8 * sizeof(unsigned long);
  if (node >= 0 && node < kNodes) {
    const unsigned long mask = 1ul << node;
    constexpr int kPreferred = 1;  // MPOL_PREFERRED: another node rather than no memory
    (void)syscall(SYS_mbind, data_, bytes, kPreferred, &mask, kNodes + 1, 0);
  }
}

Memory::~Memory() {
  if (data_) munmap(data_, size_);
}

Memory::Memory(Memory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Memory& Memory::operator=(Memory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

namespace {

// A field of a "name: value kB" or "name value" file; `fallback` where it is missing.
uint64_t read_field(const std::string& path, const std::string& name, uint64_t fallback) {
  std::ifstream file(path);
  for (std::string key; file >> key;) {
    uint64_t value;
    if ((key == name || key == name + ':') && file >> value) return value;
    file.ignore(1 << 12, '\n');
  }
  return fallback;
}

uint64_t read_bytes(const std::string& path) {
  std::ifstream file(path);
  uint64_t value;
  return file >> value ? value : UINT64_MAX;  // "max"
}

// Narrows `info` to one group: its limit, and what is left of it when its file pages are dropped.
void narrow_to_group(const std::string& folder, bool v2, MemoryInfo& info) {
  const uint64_t limit =
      read_bytes(folder + (v2 ? "/memory.max" : "/memory.limit_in_bytes"));
  if (limit >= info.total) return;
  const uint64_t used = read_bytes(folder + (v2 ? "/memory.current" : "/memory.usage_in_bytes"));
  const std::string stat = folder + "/memory.stat", prefix = v2 ? "" : "total_";
  const uint64_t files = read_field(stat, prefix + "inactive_file", 0) +
                         read_field(stat, prefix + "active_file", 0);
  const uint64_t fixed = used == UINT64_MAX || used < files ? 0 : used - files;
  info.total = limit;
  info.is_grouped = true;
  info.available = std::min(info.available, limit - std::min(limit, fixed));
}

}  // namespace

size_t page_size() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

uint64_t lock_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return UINT64_MAX;
  return limit.rlim_cur;
}

MemoryInfo memory_info() {
  const std::string meminfo = "/proc/meminfo";
  MemoryInfo info{};
  info.total = read_field(meminfo, "MemTotal", 0) * 1024;
  info.available = read_field(meminfo, "MemAvailable", 0) * 1024;
  info.swap_used = (read_field(meminfo, "SwapTotal", 0) - read_field(meminfo, "SwapFree", 0)) * 1024;
  info.numa_balancing = read_int("/proc/sys/kernel/numa_balancing", 0) != 0;
  for_each_group("memory", [&](const std::string& folder, bool v2) {
    narrow_to_group(folder, v2, info);
  });
  return info;
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

double seconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

bool request_amx() {
#ifdef SYS_arch_prctl
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace kt::os
