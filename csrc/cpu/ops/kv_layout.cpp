#include "cpu/ops/kv_layout.h"

#include <utility>

#include "base/error.h"

namespace kt::cpu {

KvPageBytes kv_page_bytes(const KvSpec& spec, KvType k_type, KvType v_type) {
  if (spec.k_width == 0) return {0, 0};
  if (k_type == KvType::kI16) return {spec.heads * kv_tile_bytes(spec.k_dim(), spec.v_dim()), 0};
  return {kv_bytes(k_type, spec.k_width) * kKvBlock, kv_bytes(v_type, spec.v_width) * kKvBlock};
}

void check_kv_types(const KvSpec& spec, KvType k_type, KvType v_type) {
  if (spec.k_width == 0) return;  // kept elsewhere
  KT_CHECK(spec.heads > 0 && spec.k_width % spec.heads == 0 && spec.v_width % spec.heads == 0,
           "cache: widths ", spec.k_width, " and ", spec.v_width, " over ", spec.heads, " heads");
  for (const auto& [type, width] : {std::pair{k_type, spec.k_width}, std::pair{v_type, spec.v_width}})
    KT_CHECK(type != KvType::kQ8_0 || width % 32 == 0, "cache: q8_0 needs widths that are ",
             "multiples of 32, a layer has ", width);
  KT_CHECK(k_type != KvType::kI16 || spec.v_width > 0,
           "cache: i16 holds keys and values by heads, a latent of ", spec.k_width,
           " values has none; choose f16 or bf16");
}

void store_position(const KernelTable& kernels, const KvSpec& spec, KvType k_type, KvType v_type,
                    const float* k, const float* v, int slot, uint8_t* k_page, uint8_t* v_page) {
  if (k_type == KvType::kI16) {
    const int64_t k_dim = spec.k_dim(), v_dim = spec.v_dim(), tile = kv_tile_bytes(k_dim, v_dim);
    for (int head = 0; head < spec.heads; ++head)
      kernels.put_tile(k + head * k_dim, static_cast<int>(k_dim), v + head * v_dim,
                       static_cast<int>(v_dim), slot, k_page + head * tile);
    return;
  }
  kernels.store_kv(k, spec.k_width, k_type, k_page + slot * kv_bytes(k_type, spec.k_width));
  if (spec.v_width > 0)
    kernels.store_kv(v, spec.v_width, v_type, v_page + slot * kv_bytes(v_type, spec.v_width));
}

void load_position(const KernelTable& kernels, const KvSpec& spec, KvType k_type, KvType v_type,
                   const uint8_t* k_page, const uint8_t* v_page, int slot, float* k, float* v) {
  if (k_type == KvType::kI16) {
    const int64_t k_dim = spec.k_dim(), v_dim = spec.v_dim(), tile = kv_tile_bytes(k_dim, v_dim);
    for (int head = 0; head < spec.heads; ++head)
      kernels.get_tile(k_page + head * tile, static_cast<int>(k_dim), static_cast<int>(v_dim), slot,
                       k + head * k_dim, v + head * v_dim);
    return;
  }
  kernels.load_kv(k_page + slot * kv_bytes(k_type, spec.k_width), spec.k_width, k_type, k);
  if (spec.v_width > 0)
    kernels.load_kv(v_page + slot * kv_bytes(v_type, spec.v_width), spec.v_width, v_type, v);
}

}  // namespace kt::cpu
