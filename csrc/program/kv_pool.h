// The one owner of cached keys and values: pages of 64 positions, shared by reference count.
//
// A page number stands for 64 positions in every layer at once; a sequence is a list of page
// numbers and a length. Sharing a prefix copies numbers, writing into a shared page copies the page
// first, and truncation gives pages back. Memory is taken in segments as pages are needed.
//
// Threads: a sequence belongs to one thread at a time, the pool to all. Python may let go of a
// sequence in one thread while another evaluates a step, so the page accounts are locked, once per
// extend, truncate or fork; addresses of pages are read without a lock, as segments never move.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/os.h"
#include "cpu/ops/attention.h"

namespace kt::program {

struct KvOptions {
  cpu::KvType k_type = cpu::KvType::kF16;
  cpu::KvType v_type = cpu::KvType::kF16;
  int64_t max_positions = 8192;  // over all sequences
};

class KvPool;

/// One sequence's view of the cache.
class Sequence {
 public:
  explicit Sequence(std::shared_ptr<KvPool> pool) : pool_(std::move(pool)) {}
  ~Sequence();
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;

  int64_t length() const { return length_; }
  KvPool& pool() const { return *pool_; }
  std::span<const int32_t> pages() const { return pages_; }

  /// Makes positions [length, end) writable: pages there, none of them shared. Throws
  /// InvalidArgument, leaving the sequence as it was, where the cache is full.
  void extend(int64_t end);
  /// Forgets positions from `length` on; does nothing to a shorter sequence. Throws InvalidArgument
  /// for a negative length.
  void truncate(int64_t length);
  /// Makes an empty sequence begin with whole pages that others hold, and shares them. Throws
  /// InvalidArgument for a sequence that is not empty.
  void begin_with(std::span<const int32_t> pages);
  /// A second sequence with the same content; pages are shared until one of them writes.
  std::shared_ptr<Sequence> fork() const;

 private:
  std::shared_ptr<KvPool> pool_;
  std::vector<int32_t> pages_;
  int64_t length_ = 0;
  mutable bool owns_last_ = false;  // what follows `length` in the last page is certainly not shared
};

class KvPool : public std::enable_shared_from_this<KvPool> {
 public:
  /// One spec per layer. Throws InvalidArgument for widths the types cannot hold.
  KvPool(std::vector<cpu::KvSpec> layers, KvOptions options);

  std::shared_ptr<Sequence> make_sequence() {
    return std::make_shared<Sequence>(shared_from_this());
  }
  int num_layers() const { return static_cast<int>(layers_.size()); }
  const cpu::KvSpec& spec(int layer) const { return layers_[layer].spec; }
  const KvOptions& options() const { return options_; }
  int64_t bytes_per_position() const;
  int64_t pages_in_use() const {
    os::Lock lock(mutex_);
    return in_use_;
  }
  int64_t page_limit() const { return limit_; }

  /// Holds one more reference to pages, beside those of the sequences they are in.
  void share(std::span<const int32_t> pages);
  /// Gives such references back.
  void give_back(std::span<const int32_t> pages);
  /// References held to a page, by sequences and others.
  int32_t references(int32_t page) const;

  /// Is told of every copy of a page's content (with the lock held): for those who keep a part of it
  /// elsewhere. Layers of width 0 keep nothing here.
  void on_copy(std::function<void(int32_t from, int32_t to)> told) {
    told_.push_back(std::move(told));
  }

  /// Addresses of a page in a layer.
  uint8_t* keys(int layer, int32_t page) const;
  uint8_t* values(int layer, int32_t page) const;

 private:
  friend class Sequence;
  static constexpr int kSegmentPages = 16;

  struct Layer {
    cpu::KvSpec spec;
    int64_t k_bytes, v_bytes;          // of one page
    std::vector<os::Memory> segments;  // with room for all from the start: never moved
  };

  // With the lock held.
  int32_t take();
  void release(int32_t page);
  void copy(int32_t from, int32_t to);

  KvOptions options_;
  int64_t limit_;
  std::vector<Layer> layers_;
  mutable os::Mutex mutex_;  // guards growth of the layers, and:
  int64_t in_use_ = 0;
  std::vector<int32_t> references_;  // per page
  std::vector<int32_t> free_;
  std::vector<std::function<void(int32_t, int32_t)>> told_;
};

}  // namespace kt::program
