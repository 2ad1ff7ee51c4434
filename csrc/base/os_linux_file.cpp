#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>

#include "base/error.h"
#include "base/os_file.h"

namespace kt::os {
namespace {

[[noreturn]] void fail(const std::string& path, const char* call, int error) {
  throw SystemError(concat(path, ": ", call, " failed (", strerror(error), ")"));
}

// ---- what the fault handler may look at: a fixed table, because a handler may not allocate ----

struct WatchedMap {
  std::atomic<uintptr_t> begin{0};  // 0 = free slot
  std::atomic<uintptr_t> end{0};
  std::atomic<int> fd{-1};
  std::atomic<bool> drop{false};
  char path[256];
};
constexpr int kMaxWatched = 1024;  // a split model has a few hundred files at most
WatchedMap watched[kMaxWatched];
std::mutex watched_mutex;

int watch(const void* data, size_t size, int fd, const std::string& path) {
  const std::lock_guard lock(watched_mutex);
  for (int slot = 0; slot < kMaxWatched; ++slot) {
    WatchedMap& map = watched[slot];
    if (map.begin.load() != 0) continue;
    const size_t length = std::min(path.size(), sizeof map.path - 1);
    memcpy(map.path, path.data() + (path.size() - length), length);  // the end tells more
    map.path[length] = 0;
    map.fd.store(fd);
    map.drop.store(false);
    map.end.store(reinterpret_cast<uintptr_t>(data) + size);
    map.begin.store(reinterpret_cast<uintptr_t>(data));
    return slot;
  }
  return -1;  // not watched: a fault there is reported by the system's own words
}

// The map that an address lies in.
const WatchedMap* find_map(const uint8_t* at) {
  const auto address = reinterpret_cast<uintptr_t>(at);
  for (const WatchedMap& map : watched) {
    const uintptr_t first = map.begin.load();
    if (first != 0 && address >= first && address < map.end.load()) return &map;
  }
  return nullptr;
}

struct sigaction previous_handler;

// Runs on the faulting thread; async-signal-safe calls only.
void on_bus_error(int signal, siginfo_t* info, void* context) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (WatchedMap& map : watched) {
    const uintptr_t begin = map.begin.load();
    if (begin == 0 || address < begin || address >= map.end.load()) continue;
    char line[512];
    size_t used = 0;
    for (const char* part : {"error: ", static_cast<const char*>(map.path),
                             ": the file shrank or its disk failed while it was in use; "
                             "restore the file and start again\n"}) {
      const size_t length = strlen(part);
      memcpy(line + used, part, length);
      used += length;
    }
    if (write(STDERR_FILENO, line, used) < 0) _exit(3);
    _exit(2);
  }
  if (previous_handler.sa_flags & SA_SIGINFO) {
    previous_handler.sa_sigaction(signal, info, context);
  } else if (previous_handler.sa_handler != SIG_DFL && previous_handler.sa_handler != SIG_IGN) {
    previous_handler.sa_handler(signal);
  } else {
    sigaction(SIGBUS, &previous_handler, nullptr);  // the access repeats and ends the process
  }
}

}  // namespace

void report_lost_pages() {
  static const bool installed = [] {
    struct sigaction action = {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, &previous_handler) == 0;
  }();
  (void)installed;
}

void prefetch_pages(const uint8_t* begin, size_t count) {
  const WatchedMap* map = find_map(begin);
  if (map == nullptr || count == 0) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t end = std::min(map->end.load(), address + count), first = address / page * page;
  (void)madvise(reinterpret_cast<void*>(first), end - first, MADV_WILLNEED);
}

void release_pages(std::span<const uint8_t> range) {
  const WatchedMap* map = range.empty() ? nullptr : find_map(range.data());
  if (map == nullptr) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t address = reinterpret_cast<uintptr_t>(range.data()), base = map->begin.load();
  const uintptr_t begin = (address + page - 1) / page * page;
  const uintptr_t end = std::min(map->end.load(), address + range.size()) / page * page;
  if (begin >= end) return;
  (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  if (map->drop.load())
    (void)posix_fadvise(map->fd.load(), static_cast<off_t>(begin - base),
                        static_cast<off_t>(end - begin), POSIX_FADV_DONTNEED);
}

FileMap::FileMap(const std::string& path) : path_(path) {
  // O_NONBLOCK: opening a named pipe must not wait for a writer.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail(path, "open", errno);
  struct stat status;
  if (fstat(fd, &status) != 0) {
    const int error = errno;
    close(fd);
    fail(path, "fstat", error);
  }
  if (!S_ISREG(status.st_mode)) {
    close(fd);
    throw SystemError(concat(path, ": is not a regular file"));
  }
  size_ = static_cast<size_t>(status.st_size);
  if (size_ != 0) {
    void* data = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
      const int error = errno;
      close(fd);
      fail(path, "mmap", error);
    }
    data_ = static_cast<const uint8_t*>(data);
    fd_ = fd;
    watch_ = watch(data_, size_, fd_, path_);
  } else {
    close(fd);
  }
}

FileMap::FileMap(FileMap&& other) noexcept
    : path_(std::move(other.path_)),
      data_(other.data_),
      size_(other.size_),
      fd_(other.fd_),
      watch_(other.watch_) {
  other.data_ = nullptr;
  other.size_ = 0;
  other.fd_ = -1;
  other.watch_ = -1;
}

FileMap::~FileMap() {
  if (watch_ >= 0) watched[watch_].begin.store(0);
  if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
  if (fd_ >= 0) close(fd_);
}

void FileMap::drop_from_cache(bool drop) {
  if (watch_ >= 0) watched[watch_].drop.store(drop);
}

void FileMap::advise(uint64_t offset, uint64_t count, Advice advice) const {
  KT_CHECK(offset <= size_ && count <= size_ - offset, path_, ": advise: range ", offset, " + ",
           count, " leaves the file of ", size_, " bytes");
  if (count == 0) return;
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  uint64_t begin = offset / page * page;
  uint64_t end = offset + count;
  int flag = MADV_NORMAL;
  switch (advice) {
    case Advice::kNormal:
      break;
    case Advice::kSequential:
      flag = MADV_SEQUENTIAL;
      break;
    case Advice::kWillNeed:
      flag = MADV_WILLNEED;
      break;
    case Advice::kDontNeed:
      flag = MADV_DONTNEED;
      begin = (offset + page - 1) / page * page;
      if (end != size_) end = end / page * page;
      break;
  }
  if (begin < end) (void)madvise(const_cast<uint8_t*>(data_) + begin, end - begin, flag);
}

AtomicFile::AtomicFile(const std::string& path, Unfinished unfinished)
    : path_(path), unfinished_(unfinished) {
  static std::atomic<unsigned> counter{0};
  if (unfinished == Unfinished::kKeep) {
    temporary_ = path + ".part";
    fd_ = open(temporary_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd_ < 0) fail(temporary_, "create", errno);
    if (flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      close(fd_);
      fail(temporary_, "lock (another process writes it)", errno);
    }
    const off_t end = lseek(fd_, 0, SEEK_END);
    size_ = end < 0 ? 0 : static_cast<uint64_t>(end);
    return;
  }
  temporary_ = concat(path, ".partial-", getpid(), "-", counter.fetch_add(1));
  fd_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd_ < 0) fail(temporary_, "create", errno);
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) close(fd_);
  if (!temporary_.empty() && unfinished_ == Unfinished::kRemove) unlink(temporary_.c_str());
}

bool AtomicFile::starts_with(std::span<const uint8_t> bytes) const {
  if (fd_ < 0 || size_ < bytes.size()) return false;
  uint8_t buffer[1 << 16];
  for (size_t at = 0; at < bytes.size();) {
    const size_t want = std::min(sizeof buffer, bytes.size() - at);
    const ssize_t count = pread(fd_, buffer, want, static_cast<off_t>(at));
    if (count <= 0 || memcmp(buffer, bytes.data() + at, static_cast<size_t>(count)) != 0) {
      return false;
    }
    at += static_cast<size_t>(count);
  }
  return true;
}

void AtomicFile::truncate(uint64_t size) {
  KT_CHECK(fd_ >= 0 && size <= size_, path_, ": truncate to ", size, " of ", size_, " bytes");
  if (ftruncate(fd_, static_cast<off_t>(size)) != 0) fail(temporary_, "truncate", errno);
  if (lseek(fd_, static_cast<off_t>(size), SEEK_SET) < 0) fail(temporary_, "seek", errno);
  size_ = size;
}

void AtomicFile::sync() {
  if (fd_ >= 0 && fdatasync(fd_) != 0) fail(temporary_, "fdatasync", errno);
}

void AtomicFile::write(std::span<const uint8_t> bytes) {
  KT_CHECK(fd_ >= 0, path_, ": write after commit");
  while (!bytes.empty()) {
    // One call moves at most 2^31 - 4096 bytes anyway; smaller pieces answer signals sooner.
    const ssize_t written = ::write(fd_, bytes.data(), std::min<size_t>(bytes.size(), 1 << 26));
    if (written < 0) {
      if (errno == EINTR) continue;
      fail(temporary_, "write", errno);
    }
    size_ += static_cast<uint64_t>(written);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

void AtomicFile::commit() {
  KT_CHECK(fd_ >= 0, path_, ": commit twice");
  if (fsync(fd_) != 0) fail(temporary_, "fsync", errno);
  const int fd = fd_;
  fd_ = -1;
  if (close(fd) != 0) fail(temporary_, "close", errno);
  if (rename(temporary_.c_str(), path_.c_str()) != 0) fail(path_, "rename", errno);
  temporary_.clear();
  // The rename itself must survive a power cut; a file system that cannot sync folders is left be.
  const size_t slash = path_.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path_.substr(0, slash + 1);
  const int folder_fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder_fd >= 0) {
    (void)fsync(folder_fd);
    close(folder_fd);
  }
}

}  // namespace kt::os
