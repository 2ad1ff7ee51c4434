// Tile and split choice; host code only.
#include <algorithm>

#include "base/error.h"
#include "cuda/attention/flash.h"

namespace kt::cuda {

FlashTile choose_flash_tile(const FlashParams& p, int max_length, int sms, int arch) {
  KT_CHECK(p.sequences > 0 && p.max_tokens > 0 && p.total_tokens > 0,
           "attention over nothing: ", p.sequences, " sequences, ", p.total_tokens, " tokens");
  KT_CHECK(p.kv_heads > 0 && p.heads % p.kv_heads == 0, p.kv_heads, " key heads must divide ",
           p.heads, " heads");
  KT_CHECK(max_length > 0 && max_length <= p.max_pages * kPagePositions, max_length,
           " positions do not fit ", p.max_pages, " pages of ", kPagePositions);
  if (arch < 80 && p.type == AttentionType::kBf16)
    throw Unsupported("compute capability 7.5 has no bf16 arithmetic; use f16");
  const bool mla = p.v == nullptr;
  if (mla) {
    if (!((p.qk_dim == 576 && p.v_dim == 512) || (p.qk_dim == 288 && p.v_dim == 256)))
      throw Unsupported(concat("no latent attention kernel for ", p.qk_dim, " and ", p.v_dim));
  } else if (!((p.qk_dim == p.v_dim && (p.qk_dim == 64 || p.qk_dim == 128)) ||
               (p.qk_dim == 192 && p.v_dim == 128) || (p.qk_dim == 96 && p.v_dim == 64))) {
    throw Unsupported(concat("no attention kernel for keys of ", p.qk_dim, " and values of ",
                             p.v_dim, "; there are 64, 96/64, 128, 192/128 and latent 288, 576"));
  }
  FlashTile tile{16, 64, 2, 1};
  const int rows = p.max_tokens * (p.heads / p.kv_heads);
  const unsigned shared_kib = most_shared_bytes(arch) >> 10;
  if (mla && p.qk_dim == 576) {
    if (rows >= 64 && shared_kib >= 163) {
      tile = {64, 64, 1, 1};
    } else if (shared_kib < 99) {
      tile = {16, 32, 1, 1};
    } else if (shared_kib < 227) {
      tile.stages = 1;
    }
  } else if (mla) {
    tile.stages = 1;
  } else if (p.qk_dim == 192) {
    tile = {rows >= 48 && shared_kib >= 99 ? 64 : 16, 64, 1, 1};
  } else if (p.qk_dim == 96) {
    tile.rows = 16;
  } else {
    tile.rows = rows >= 48 ? 64 : 16;
    if (p.qk_dim == 128 && shared_kib < 99) tile.stages = 1;
  }
  // Split until every multiprocessor has a block, but never below four tiles of positions each:
  // the parts must be added again.
  const int64_t blocks = int64_t{div_up(rows, tile.rows)} * p.kv_heads * p.sequences;
  const int64_t wanted = std::max<int64_t>(1, sms / blocks);
  const int64_t most = std::max(1, max_length / (4 * tile.positions));
  tile.splits = static_cast<int>(std::min<int64_t>({wanted, most, 128}));
  return tile;
}

size_t flash_workspace_bytes(const FlashParams& p, const FlashTile& tile) {
  if (tile.splits == 1) return 0;
  return size_t(tile.splits) * p.total_tokens * p.heads * (p.v_dim + 2) * sizeof(float);
}

}  // namespace kt::cuda
