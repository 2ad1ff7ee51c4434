// Files as the operating system gives them: read-only maps and atomically replaced files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace kt::os {

/// What the caller is about to do with a range of a map.
enum class Advice { kNormal, kSequential, kWillNeed, kDontNeed };

/// A whole regular file mapped read-only; unmapped by the destructor.
///
/// A file that shrinks while it is mapped makes reads of the lost pages fault (SIGBUS). After
/// `report_lost_pages()` such a fault prints one line with the file's name and exits with status 2.
class FileMap {
 public:
  /// Raises: SystemError with the call and errno's text; also for anything but a regular file.
  explicit FileMap(const std::string& path);
  ~FileMap();
  FileMap(FileMap&& other) noexcept;
  FileMap& operator=(FileMap&&) = delete;

  std::span<const uint8_t> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

  /// Whether pages that `release_pages` gives up also leave the system's file cache. Right where
  /// memory is short; elsewhere the next start would have to read the disk again.
  void drop_from_cache(bool drop);

  /// Passes the hint on for bytes [offset, offset + count), widened to whole pages except for
  /// kDontNeed, which drops only pages that lie wholly inside. A hint may be ignored; never throws
  /// for what the system thinks of it. Raises: InvalidArgument if the range leaves the file.
  void advise(uint64_t offset, uint64_t count, Advice advice) const;

 private:
  std::string path_;
  const uint8_t* data_ = nullptr;  // [size_], nullptr for an empty file
  size_t size_ = 0;
  int fd_ = -1;     // kept for advice on its pages
  int watch_ = -1;  // slot in the table the fault handler reads
};

/// Starts reading bytes [begin, begin + count) from disk, as far as they lie in the FileMap that
/// `begin` lies in, if there is one; returns at once.
void prefetch_pages(const uint8_t* begin, size_t count);

/// Gives up the pages that lie wholly in `range` if it is part of a FileMap: its bytes stay
/// readable, from the file. Any other memory is left alone.
void release_pages(std::span<const uint8_t> range);

/// From now on a fault on a mapped page that its file no longer has names the file on stderr and
/// exits with status 2; other faults go to whoever handled them before. Idempotent.
void report_lost_pages();

/// What becomes of a file that is not committed: removed, or kept as "PATH.part" to go on with.
enum class Unfinished { kRemove, kKeep };

/// A file written beside its destination and visible there only once `commit` renamed it.
/// Destroyed without commit, it leaves nothing behind, or with kKeep what was written.
class AtomicFile {
 public:
  /// With kKeep, what "PATH.part" holds is taken over: `size` tells how much, `truncate` cuts it.
  /// Raises: SystemError if the temporary file cannot be created, or another process writes it.
  explicit AtomicFile(const std::string& path, Unfinished unfinished = Unfinished::kRemove);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const uint8_t> bytes);
  uint64_t size() const { return size_; }
  const std::string& path() const { return path_; }

  /// Whether the first bytes of what is written so far are these.
  bool starts_with(std::span<const uint8_t> bytes) const;
  /// Cuts to `size` bytes, at most what is there; the next write goes there. Raises: SystemError.
  void truncate(uint64_t size);
  /// Returns once everything written would survive a power cut. Raises: SystemError.
  void sync();

  /// fsync, rename over the destination, fsync of the folder. Raises: SystemError.
  void commit();

 private:
  std::string path_, temporary_;
  Unfinished unfinished_;
  int fd_ = -1;
  uint64_t size_ = 0;
};

}  // namespace kt::os
