// Checks and tile choice; no device code.
#include <algorithm>

#include "base/error.h"
#include "cuda/quant_gemv/quant_gemv.h"
#include "quant/formats.h"

namespace kt::cuda {

bool launch_gemv_legacy(const GemvParams& p, const GemvTile& tile);
bool launch_gemv_k(const GemvParams& p, const GemvTile& tile);
bool launch_gemv_iq(const GemvParams& p, const GemvTile& tile);
bool launch_gemv_iq_small(const GemvParams& p, const GemvTile& tile);
bool launch_float_gemv(const GemvParams& p);

void check_gemv_format(int gguf_id) {
  const quant::FormatInfo* info = quant::find_format(gguf_id);
  if (!info) throw quant::unsupported_format(gguf_id);
  if (gguf_id == quant::TQ1_0::kGgufId || gguf_id == quant::TQ2_0::kGgufId)
    throw Unsupported(concat("no CUDA kernel for weights of type ", info->name));
}

GemvTile choose_gemv_tile(const GemvParams& p, int sms, int arch) {
  KT_CHECK(p.n > 0 && p.k > 0 && p.max_items > 0 && p.max_tiles > 0, "empty product: n=", p.n,
           " k=", p.k, " items=", p.max_items, " tiles=", p.max_tiles);
  KT_CHECK(sms > 0, "a card with ", sms, " multiprocessors");
  if (p.layout == WeightLayout::kFp8) {
    KT_CHECK(p.k % 32 == 0, "k=", p.k, " must be a multiple of 32 for FP8");
  } else {
    const quant::FormatInfo* info = quant::find_format(p.gguf_id);
    if (!info) throw quant::unsupported_format(p.gguf_id);
    KT_CHECK(p.k % info->values_per_block == 0 && p.k % 32 == 0, "k=", p.k,
             " must be a multiple of ", info->values_per_block, " for ", info->name);
  }
  GemvTile tile{};
  tile.token_tiles = p.max_tiles == 1 ? 1 : 4;
  // Eight warps on a row group need eight chunks to have work; short rows are shared by two.
  tile.depth = p.k >= 8 * 256 ? 8 : 2;
  const int64_t pairs = int64_t{p.max_items} * div_up(p.n, 16);
  const int resident = sms * (tile.token_tiles == 1 ? 2 : 1);
  tile.blocks =
      static_cast<int>(std::min<int64_t>(resident, div_up<int64_t>(pairs, 8 / tile.depth)));
  // Turing has nothing to overlap copies with; more blocks at a time do as well there.
  tile.most_stages = arch < 80 ? 1 : 4;
  tile.shared_bytes = most_shared_bytes(arch);
  return tile;
}

void launch_quant_gemv(const GemvParams& p, const GemvTile& tile) {
  if (launch_float_gemv(p)) return;
  if (launch_gemv_legacy(p, tile) || launch_gemv_k(p, tile) || launch_gemv_iq(p, tile) ||
      launch_gemv_iq_small(p, tile))
    return;
  const quant::FormatInfo* info = quant::find_format(p.gguf_id);
  throw Unsupported(concat("no CUDA kernel for weights of type ", info ? info->name : "unknown",
                           p.layout == WeightLayout::kBlocks ? " in the file's blocks" : ""));
}

}  // namespace kt::cuda
