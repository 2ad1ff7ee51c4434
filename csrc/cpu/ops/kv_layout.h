// How a page of the cache holds 64 positions of one layer: as rows of values, or as one tile of int16
// per key head (KvType::kI16), which attention reads as it is.
#pragma once

#include <cstdint>

#include "cpu/kernel_table.h"

namespace kt::cpu {

/// What one layer keeps per cached position, in values: k_width and v_width over all of its heads.
struct KvSpec {
  int64_t k_width;
  int64_t v_width;  // 0: values are a prefix of the keys (MLA's latent)
  int heads = 1;    // key heads, of equal widths

  int64_t k_dim() const { return k_width / heads; }
  int64_t v_dim() const { return v_width / heads; }
};

/// Keys and values of a page. As tiles both lie where the keys are, and values take no bytes.
struct KvPageBytes {
  int64_t k, v;
};
KvPageBytes kv_page_bytes(const KvSpec& spec, KvType k_type, KvType v_type);

/// Throws InvalidArgument, naming the widths, where a layer cannot be kept in these types.
void check_kv_types(const KvSpec& spec, KvType k_type, KvType v_type);

/// One position: k [k_width], v [v_width] -> slot 0..63 of a page.
void store_position(const KernelTable& kernels, const KvSpec& spec, KvType k_type, KvType v_type,
                    const float* k, const float* v, int slot, uint8_t* k_page, uint8_t* v_page);

/// The same back as floats; for readers outside of the core's attention, not for speed.
void load_position(const KernelTable& kernels, const KvSpec& spec, KvType k_type, KvType v_type,
                   const uint8_t* k_page, const uint8_t* v_page, int slot, float* k, float* v);

}  // namespace kt::cpu
