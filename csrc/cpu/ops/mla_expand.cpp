// MLA's expanded form in int16: keys and values of every cached position from its latent, head by
// head, as tiles that attention then reads.
//
// The expansion is itself a product with tiles: a head's rows of kv_b, unpacked to floats and rounded
// to 16 bits once per call, are the "keys", the latents the queries. Per call that costs the unpacking
// of kv_b and length * heads * (nope + v) * latent products; what it saves, per row and position, is
// heads * (2 * latent + rope - nope - rope - v) of the absorbed form's.
#include <algorithm>

#include "cpu/isa.h"
#include "cpu/ops/attention.h"
#include "cpu/ops/tile_attention.h"

namespace kt::cpu {
namespace {

// Keys and values computed for this call: [head][page].
class ExpandedTiles : public TileSource {
 public:
  ExpandedTiles(const uint8_t* tiles, int64_t pages, int64_t tile_bytes)
      : tiles_(tiles), pages_(pages), tile_bytes_(tile_bytes) {}
  const uint8_t* tile(int, int head, int64_t page, int, uint8_t*) const override {
    return tiles_ + (head * pages_ + page) * tile_bytes_;
  }

 private:
  const uint8_t* tiles_;
  int64_t pages_, tile_bytes_;
};

// Rows [begin, end) of a matrix as floats, [end - begin, cols].
void unpack_rows(const KernelTable& kernels, const Matrix& weight, int64_t begin, int64_t end,
                 float* out) {
  const float one = 1.0f;
  for (const RowSlice& slice : weight.slices()) {
    const int64_t first = std::max(begin, slice.row_begin);
    const int64_t last = std::min(end, slice.row_begin + slice.rows);
    for (int64_t row = first; row < last; ++row) {
      float* y = out + (row - begin) * weight.cols();
      std::fill_n(y, weight.cols(), 0.0f);
      format_kernels(kernels, weight.gguf_id())
          .transposed({slice.data, weight.cols(), slice.rows, row - slice.row_begin,
                       row - slice.row_begin + 1, &one, y});
    }
  }
}

}  // namespace

// out: [nope, latent]
void MlaAttention::key_rows(const KernelTable& kernels, int64_t head, float* out) const {
  const int64_t nope = w_.qk_nope_head_dim, v = w_.v_head_dim, latent = w_.kv_lora_rank;
  if (w_.kv_b) {
    unpack_rows(kernels, w_.kv_b->weight(), head * (nope + v), head * (nope + v) + nope, out);
    return;
  }
  float row[kMostHead];  // of nope values
  for (int64_t l = 0; l < latent; ++l) {
    unpack_rows(kernels, *w_.k_b[head], l, l + 1, row);
    for (int64_t n = 0; n < nope; ++n) out[n * latent + l] = row[n];
  }
}

// out: [v, latent]
void MlaAttention::value_rows(const KernelTable& kernels, int64_t head, float* out) const {
  const int64_t nope = w_.qk_nope_head_dim, v = w_.v_head_dim;
  if (w_.kv_b)
    unpack_rows(kernels, w_.kv_b->weight(), head * (nope + v) + nope, (head + 1) * (nope + v), out);
  else
    unpack_rows(kernels, *w_.v_b[head], 0, v, out);
}

void MlaAttention::expanded_tiles(Context& context, const AttentionRows& rows, const int* chosen,
                                  int count, const float* q, float* heads_out) const {
  Arena::Scope scope(context.arena);
  Arena& arena = context.arena;
  const KernelTable& kernels = context.kernels;
  const int64_t heads = w_.num_heads, nope = w_.qk_nope_head_dim, rope = w_.qk_rope_head_dim;
  const int64_t v = w_.v_head_dim, latent = w_.kv_lora_rank, width = latent + rope;
  const int64_t key = nope + rope, both = nope + v;
  int32_t length = 0;
  for (int i = 0; i < count; ++i) length = std::max(length, rows.position[chosen[i]] + 1);
  const KvPages& kv = rows.kv[chosen[0]];
  const int64_t num_pages = (length + kKvBlock - 1) / kKvBlock;

  // The latents, read back from the cache: what a later decode step will see.
  float* latents = arena.take<float>(length * width);
  const int64_t even = (latent + 1) / 2 * 2;
  int16_t* rounded = arena.take<int16_t>(length * even);
  float* steps = arena.take<float>(length);
  const int64_t stride = kv_bytes(rows.k_type, width);
  context.pool.run(num_pages, [&](int64_t page, int) {
    const int64_t end = std::min<int64_t>(length, (page + 1) * kKvBlock);
    for (int64_t p = page * kKvBlock; p < end; ++p) {
      kernels.load_kv(kv.k[page] + p % kKvBlock * stride, width, rows.k_type, latents + p * width);
      steps[p] = kernels.round_int16(latents + p * width, latent, rounded + p * even);
    }
  });

  // As many heads at a time as keep their tiles within 64 MiB.
  const int64_t tile_bytes = kv_tile_bytes(key, v);
  const int64_t bundle = std::clamp<int64_t>((64 << 20) / (num_pages * tile_bytes), 1, heads);
  uint8_t* tiles = arena.take<uint8_t>(bundle * num_pages * tile_bytes);
  const int64_t parts = (both + kKvBlock - 1) / kKvBlock;  // tiles of a head's weights
  const int64_t part_bytes = kv_tile_bytes(latent, 0);
  uint8_t* weights = arena.take<uint8_t>(bundle * parts * part_bytes);
  const int threads = context.pool.threads();
  float* unpacked = arena.take<float>(threads * both * latent);
  float* scores = arena.take<float>(threads * parts * kKvBlock * kKvBlock);
  for (int64_t first = 0; first < heads; first += bundle) {
    const int64_t now = std::min(bundle, heads - first);
    context.pool.run(now, [&](int64_t h, int worker) {
      float* all = unpacked + worker * both * latent;
      key_rows(kernels, first + h, all);
      value_rows(kernels, first + h, all + nope * latent);
      for (int64_t row = 0; row < both; ++row)
        kernels.put_tile(all + row * latent, static_cast<int>(latent), nullptr, 0,
                         static_cast<int>(row % kKvBlock),
                         weights + (h * parts + row / kKvBlock) * part_bytes);
    });
    context.pool.run(now * num_pages, [&](int64_t index, int worker) {
      const int64_t h = index / num_pages, page = index % num_pages;
      const int64_t begin = page * kKvBlock, end = std::min<int64_t>(length, begin + kKvBlock);
      const int64_t row_floats = parts * kKvBlock;
      float* made = scores + worker * kKvBlock * row_floats;  // [position][nope + v, filled up]
      const int16_t* x[kKvBlock];
      float* out[kKvBlock];
      for (int64_t part = 0; part < parts; ++part) {
        for (int64_t p = begin; p < end; ++p) {
          x[p - begin] = rounded + p * even;
          out[p - begin] = made + (p - begin) * row_floats + part * kKvBlock;
        }
        kernels.score_tile({static_cast<int>(end - begin), x, steps + begin,
                            static_cast<int>(latent), weights + (h * parts + part) * part_bytes,
                            out});
      }
      alignas(64) float whole[kMostHead];
      for (int64_t p = begin; p < end; ++p) {
        const float* from = made + (p - begin) * row_floats;
        std::copy_n(from, nope, whole);
        std::copy_n(latents + p * width + latent, rope, whole + nope);
        kernels.put_tile(whole, static_cast<int>(key), from + nope, static_cast<int>(v),
                         static_cast<int>(p - begin), tiles + index * tile_bytes);
      }
    });
    tile_attention(context, rows, chosen, count,
                   {q + first * key, heads * key, heads_out + first * v, heads * v,
                    static_cast<int>(now), 1, static_cast<int>(key), static_cast<int>(v)},
                   ExpandedTiles(tiles, num_pages, tile_bytes));
  }
}

}  // namespace kt::cpu
