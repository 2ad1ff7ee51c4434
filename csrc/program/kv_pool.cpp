#include "program/kv_pool.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace kt::program {

using cpu::kKvBlock;

namespace {

/// Room for some pages; none where a layer keeps its cache elsewhere.
os::Memory segment(int64_t page_bytes, int pages) {
  return page_bytes > 0 ? os::Memory(static_cast<size_t>(page_bytes) * pages) : os::Memory();
}

}  // namespace

Sequence::~Sequence() { truncate(0); }

void Sequence::extend(int64_t end) {
  // The usual step of a generation stays within a page that is this sequence's alone: no lock.
  if (owns_last_ && end <= static_cast<int64_t>(pages_.size()) * kKvBlock) {
    length_ = std::max(length_, end);
    return;
  }
  KT_CHECK(end <= pool_->limit_ * kKvBlock, "the cache is full: ", end,
           " positions are needed here, it holds ", pool_->limit_ * kKvBlock,
           "; allow more positions (--cache_lens)");
  os::Lock lock(pool_->mutex_);
  const int64_t needed = (end + kKvBlock - 1) / kKvBlock;
  int64_t missing = needed - static_cast<int64_t>(pages_.size());
  // The page that is written next may be shared with a fork.
  const bool copies = length_ % kKvBlock != 0 && length_ < end &&
                      pool_->references_[pages_[length_ / kKvBlock]] > 1;
  const int64_t want = std::max<int64_t>(missing, 0) + (copies ? 1 : 0);
  KT_CHECK(pool_->in_use_ + want <= pool_->limit_, "the cache is full: ", end,
           " positions are needed here, ", pool_->in_use_, " of ", pool_->limit_, " pages of ",
           kKvBlock, " are taken; allow more positions (--cache_lens)");
  if (copies) {
    int32_t& page = pages_[length_ / kKvBlock];
    const int32_t fresh = pool_->take();
    pool_->copy(page, fresh);
    pool_->release(page);
    page = fresh;
  }
  for (; missing > 0; --missing) pages_.push_back(pool_->take());
  if (end > length_) {
    length_ = end;
    owns_last_ = true;
  }
}

void Sequence::truncate(int64_t length) {
  KT_CHECK(length >= 0, "a sequence cannot be truncated to ", length, " positions");
  os::Lock lock(pool_->mutex_);
  if (length < length_) {  // the page that becomes the last may be shared
    length_ = length;
    owns_last_ = false;
  }
  // Pages beyond the length, too: an extend that ran out of memory half way leaves some.
  const auto keep = static_cast<size_t>((length_ + kKvBlock - 1) / kKvBlock);
  while (pages_.size() > keep) {
    pool_->release(pages_.back());
    pages_.pop_back();
  }
}

std::shared_ptr<Sequence> Sequence::fork() const {
  auto copy = std::make_shared<Sequence>(pool_);
  os::Lock lock(pool_->mutex_);
  owns_last_ = false;
  copy->pages_ = pages_;
  copy->length_ = length_;
  for (const int32_t page : pages_) ++pool_->references_[page];
  return copy;
}

void Sequence::begin_with(std::span<const int32_t> pages) {
  KT_CHECK(length_ == 0 && pages_.empty(), "a sequence of ", length_,
           " positions cannot begin anew");
  pool_->share(pages);
  pages_.assign(pages.begin(), pages.end());
  length_ = static_cast<int64_t>(pages.size()) * kKvBlock;
}

KvPool::KvPool(std::vector<cpu::KvSpec> layers, KvOptions options) : options_(options) {
  KT_CHECK(options.max_positions > 0 && options.max_positions <= INT32_MAX,
           "max_positions=", options.max_positions, " must be in 1..", INT32_MAX);
  limit_ = (options.max_positions + kKvBlock - 1) / kKvBlock;
  for (const cpu::KvSpec& spec : layers) {
    cpu::check_kv_types(spec, options.k_type, options.v_type);
    const auto [k, v] = cpu::kv_page_bytes(spec, options.k_type, options.v_type);
    layers_.push_back({spec, k, v, {}});
    layers_.back().segments.reserve((limit_ + kSegmentPages - 1) / kSegmentPages);
  }
}

int64_t KvPool::bytes_per_position() const {
  int64_t total = 0;
  for (const Layer& layer : layers_) total += (layer.k_bytes + layer.v_bytes) / kKvBlock;
  return total;
}

void KvPool::share(std::span<const int32_t> pages) {
  os::Lock lock(mutex_);
  for (const int32_t page : pages) {
    KT_CHECK(page >= 0 && static_cast<size_t>(page) < references_.size() && references_[page] > 0,
             "cache: page ", page, " is not in use");
  }
  for (const int32_t page : pages) ++references_[page];
}

void KvPool::give_back(std::span<const int32_t> pages) {
  os::Lock lock(mutex_);
  for (const int32_t page : pages) release(page);
}

int32_t KvPool::references(int32_t page) const {
  os::Lock lock(mutex_);
  return references_[page];
}

uint8_t* KvPool::keys(int layer, int32_t page) const {
  const Layer& l = layers_[layer];
  return l.segments[page / kSegmentPages].data() + page % kSegmentPages * (l.k_bytes + l.v_bytes);
}

uint8_t* KvPool::values(int layer, int32_t page) const {
  const Layer& l = layers_[layer];
  return l.v_bytes == 0 ? keys(layer, page) : keys(layer, page) + l.k_bytes;
}

int32_t KvPool::take() {
  if (free_.empty()) {
    const auto first = static_cast<int32_t>(references_.size());
    for (Layer& layer :
         layers_) {  // a layer may have its segment from a try that ran out of memory
      if (layer.segments.size() * kSegmentPages == references_.size())
        layer.segments.push_back(segment(layer.k_bytes + layer.v_bytes, kSegmentPages));
    }
    references_.resize(references_.size() + kSegmentPages, 0);
    for (int i = kSegmentPages - 1; i >= 0; --i) free_.push_back(first + i);
  }
  const int32_t page = free_.back();
  free_.pop_back();
  references_[page] = 1;
  ++in_use_;
  return page;
}

void KvPool::release(int32_t page) {
  if (--references_[page] > 0) return;
  free_.push_back(page);
  --in_use_;
}

void KvPool::copy(int32_t from, int32_t to) {
  for (int layer = 0; layer < num_layers(); ++layer) {
    const Layer& l = layers_[layer];
    if (l.k_bytes > 0)
      std::memcpy(keys(layer, to), keys(layer, from), static_cast<size_t>(l.k_bytes + l.v_bytes));
  }
  for (const auto& tell : told_) tell(from, to);
}

}  // namespace kt::program
