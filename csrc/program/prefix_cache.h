// Pages of prompts and answers gone by, found again by their tokens.
//
// A tree whose edges are runs of 64 tokens and whose nodes each hold one page: what was computed
// for those tokens after those of the nodes above. A request takes the pages along the longest path
// its tokens follow and evaluates the rest. Tokens are compared themselves, not a hash of them, so
// that no request is ever given another text's pages.
//
// Nodes lie in one vector, and the edges in one map from (node, tokens) to the node below: nothing
// here recurses, however long a text is. One thread at a time.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "program/kv_pool.h"

namespace kt::program {

class PrefixCache {
 public:
  explicit PrefixCache(std::shared_ptr<KvPool> pool) : pool_(std::move(pool)) {}
  ~PrefixCache() { clear(); }
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  /// A new sequence that begins with all cached pages of tokens[0, most), whole pages only.
  std::shared_ptr<Sequence> match(std::span<const int32_t> tokens, int64_t most);
  /// Keeps the sequence's whole pages under the tokens they were computed for.
  void insert(const Sequence& sequence, std::span<const int32_t> tokens);
  /// Lets go of pages no sequence uses, those longest unused first, until `pages` are free; returns
  /// how many became free.
  int64_t evict(int64_t pages);
  /// Lets go of everything.
  void clear();

  int64_t pages() const { return static_cast<int64_t>(edges_.size()); }
  /// Pages that nothing else holds: as many as evict() can free now, or a few more.
  int64_t evictable() const;

 private:
  using Run = std::array<int32_t, cpu::kKvBlock>;
  struct Edge {
    int32_t parent;
    Run tokens;
    auto operator<=>(const Edge&) const = default;
  };
  struct Node {
    int32_t page = -1;  // -1: the place is free
    int32_t children = 0;
    uint64_t used = 0;  // the clock when last matched or inserted
    Edge edge{};
  };
  static constexpr int32_t kRoot = -1;

  int32_t find(int32_t parent, std::span<const int32_t> run) const;
  void remove(int32_t node);

  std::shared_ptr<KvPool> pool_;
  std::map<Edge, int32_t> edges_;
  std::vector<Node> nodes_;
  std::vector<int32_t> free_;
  uint64_t clock_ = 0;
};

}  // namespace kt::program
