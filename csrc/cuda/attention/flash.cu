#include "base/error.h"
#include "cuda/attention/kernel.h"

namespace kt::cuda {

void launch_flash(const FlashParams& p, const FlashTile& tile) {
  if (p.cache == CacheType::kFp8)
    KT_CHECK(p.v ? p.v_exponents && !p.k_exponents : p.k_exponents && p.k_rope,
             "an FP8 cache without its exponents, or latents without their rotated part");
  if (!launch_flash_gqa(p, tile) && !launch_flash_mla(p, tile) && !launch_flash_mla_wide(p, tile))
    throw Unsupported(concat("no attention kernel for keys of ", p.qk_dim, " and values of ",
                             p.v_dim, " in tiles of ", tile.rows, " x ", tile.positions));
  if (tile.splits == 1) return;
  const int64_t heads = int64_t{p.total_tokens} * p.heads;
  const LaunchShape shape{.grid_x = static_cast<unsigned>(div_up<int64_t>(heads, 4)),
                          .threads = 128};
  if (p.type == AttentionType::kBf16) {
    launch<FlashCombine<bf16_t>>(shape, {p, tile.splits}, p.stream);
  } else {
    launch<FlashCombine<half_t>>(shape, {p, tile.splits}, p.stream);
  }
}

}  // namespace kt::cuda
