#include "program/prefix_cache.h"

#include <algorithm>

namespace kt::program {

using cpu::kKvBlock;

int32_t PrefixCache::find(int32_t parent, std::span<const int32_t> run) const {
  Edge edge{parent, {}};
  std::copy_n(run.begin(), kKvBlock, edge.tokens.begin());
  const auto found = edges_.find(edge);
  return found == edges_.end() ? kRoot : found->second;
}

std::shared_ptr<Sequence> PrefixCache::match(std::span<const int32_t> tokens, int64_t most) {
  most = std::min(most, static_cast<int64_t>(tokens.size()));
  std::vector<int32_t> pages;
  ++clock_;
  int32_t node = kRoot;
  for (int64_t at = 0; at + kKvBlock <= most; at += kKvBlock) {
    const int32_t next = find(node, tokens.subspan(at, kKvBlock));
    if (next == kRoot) break;
    node = next;
    nodes_[node].used = clock_;
    pages.push_back(nodes_[node].page);
  }
  auto sequence = pool_->make_sequence();
  sequence->begin_with(pages);
  return sequence;
}

void PrefixCache::insert(const Sequence& sequence, std::span<const int32_t> tokens) {
  const int64_t end = std::min(sequence.length(), static_cast<int64_t>(tokens.size()));
  ++clock_;
  int32_t parent = kRoot;
  for (int64_t at = 0; at + kKvBlock <= end; at += kKvBlock) {
    const auto run = tokens.subspan(at, kKvBlock);
    int32_t node = find(parent, run);
    if (node == kRoot) {
      if (free_.empty()) {
        free_.push_back(static_cast<int32_t>(nodes_.size()));
        nodes_.emplace_back();
      }
      node = free_.back();
      Node& made = nodes_[node];
      made.edge.parent = parent;
      std::copy_n(run.begin(), kKvBlock, made.edge.tokens.begin());
      const int32_t page = sequence.pages()[at / kKvBlock];
      edges_.emplace(made.edge, node);
      pool_->share({&page, 1});
      made.page = page;
      made.children = 0;
      free_.pop_back();
      if (parent != kRoot) ++nodes_[parent].children;
    }
    nodes_[node].used = clock_;
    parent = node;
  }
}

void PrefixCache::remove(int32_t node) {
  Node& gone = nodes_[node];
  edges_.erase(gone.edge);
  pool_->give_back({&gone.page, 1});
  if (gone.edge.parent != kRoot) --nodes_[gone.edge.parent].children;
  gone.page = -1;
  free_.push_back(node);
}

int64_t PrefixCache::evict(int64_t pages) {
  int64_t freed = 0;
  while (freed < pages) {
    // The ends of paths that nobody reads; taking one away may make its parent the next.
    std::vector<int32_t> ends;
    for (const auto& [edge, node] : edges_) {
      if (nodes_[node].children == 0 && pool_->references(nodes_[node].page) == 1)
        ends.push_back(node);
    }
    if (ends.empty()) break;
    const auto older = [&](int32_t a, int32_t b) { return nodes_[a].used < nodes_[b].used; };
    std::sort(ends.begin(), ends.end(), older);
    // A path's end is younger than or as old as what is above it, so a whole old path may go before
    // the next path's end does.
    const uint64_t next = ends.size() > 1 ? nodes_[ends[1]].used : UINT64_MAX;
    int32_t node = ends[0];
    while (freed < pages && node != kRoot && nodes_[node].children == 0 &&
           nodes_[node].used <= next && pool_->references(nodes_[node].page) == 1) {
      const int32_t parent = nodes_[node].edge.parent;
      remove(node);
      ++freed;
      node = parent;
    }
  }
  return freed;
}

void PrefixCache::clear() {
  for (Node& node : nodes_)
    if (node.page >= 0) pool_->give_back({&node.page, 1});
  nodes_.clear();
  free_.clear();
  edges_.clear();
}

int64_t PrefixCache::evictable() const {
  // An upper bound: two sequences that computed the same text each have pages of their own, and one
  // of them may hold a page below another's.
  int64_t count = 0;
  for (const auto& [edge, node] : edges_)
    if (pool_->references(nodes_[node].page) == 1) ++count;
  return count;
}

}  // namespace kt::program
