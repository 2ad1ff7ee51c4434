// Attention over a paged cache with an online softmax (Milakov & Gimelshein 2018; Dao et al. 2022),
// split over the positions where few rows would leave the card idle. One kernel serves
//   grouped-query attention   keys and values of their own, decode and prompts
//   absorbed MLA              576 values per position, of which the first 512 are also the values
//   expanded MLA              keys of 192, values of 128 per head (kv_heads = heads)
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "cuda/common/types.h"

namespace kt::cuda {

constexpr int kPagePositions = 64;

/// Types of q and of the output, and of the cache.
enum class AttentionType : uint8_t { kF16, kBf16 };
enum class CacheType : uint8_t { kSame, kFp8 };

struct FlashParams {
  const void* q;               // [tokens, heads, qk]; MLA: [latent | rope], as the cache
  const void* k;               // [pages, 64, kv_heads, qk] of q's type; FP8 latents: [pages, 64, v]
  const void* v;               // [pages, 64, kv_heads, v]; null: the first v values of k
  const void* k_rope;          // beside FP8 latents: [pages, 64, qk - v] of q's type
  // Of an FP8 cache, [pages, 64, kv_heads]: a position's values are times 2^(exponent - 127). Its
  // rotated keys are no FP8: k_exponents are those of latents.
  const uint8_t *k_exponents, *v_exponents;
  void* out;                   // [tokens, heads, v]
  const int32_t* first_token;  // [sequences + 1] tokens of a sequence are consecutive
  const int32_t* kv_length;    // [sequences] positions cached, these tokens included
  const int32_t* pages;        // [sequences, max_pages]
  float* partial;              // flash_workspace_bytes
  int sequences, max_tokens;   // per sequence
  int total_tokens;
  int heads, kv_heads, qk_dim, v_dim;
  int max_pages;
  float scale;             // of the scores
  AttentionType type;
  CacheType cache;
  Stream stream;
};

/// rows: 16 or 64 (token, head) pairs per block; positions: 64 or 32 at a time; splits of the
/// cache.
struct FlashTile {
  int rows, positions, stages, splits;
};
/// max_length: the longest kv_length the launch must be good for (a captured graph keeps its
/// splits). Throws InvalidArgument, Unsupported for head sizes without a kernel.
FlashTile choose_flash_tile(const FlashParams& params, int max_length, int sms, int arch);
size_t flash_workspace_bytes(const FlashParams& params, const FlashTile& tile);
void launch_flash(const FlashParams& params, const FlashTile& tile);

/// Tries one file's kernels; false: not among them.
bool launch_flash_mla(const FlashParams& params, const FlashTile& tile);
bool launch_flash_mla_wide(const FlashParams& params, const FlashTile& tile);
bool launch_flash_gqa(const FlashParams& params, const FlashTile& tile);

}  // namespace kt::cuda
