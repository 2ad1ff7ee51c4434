// The two kinds of attention: what is launched between a layer's first norm and its residual.
#include <algorithm>

#include "cuda/gemm/rows16.h"
#include "cuda/model/card_model.h"

namespace kt::cuda {

FlashParams CardModel::flash_shape(const StepSize& size) const {
  FlashParams p{};
  p.sequences = size.sequences, p.total_tokens = size.rows, p.max_tokens = size.max_tokens;
  p.heads = s_.heads, p.kv_heads = s_.kv_heads;
  p.qk_dim = s_.qk(), p.v_dim = s_.attended();
  // Latents are their own values; choosing a tile looks at no more than this.
  p.v = s_.latent() ? nullptr : layers_[0].values;
  p.max_pages = s_.max_pages;
  p.scale = s_.scale;
  p.cache = s_.fp8_cache ? CacheType::kFp8 : CacheType::kSame;
  p.type = AttentionType::kF16;
  return p;
}

FlashTile CardModel::flash_tile(const FlashParams& params) const {
  FlashTile tile = choose_flash_tile(params, s_.max_pages * kPagePositions, s_.sms, s_.arch);
  while (flash_workspace_bytes(params, tile) > flash_bytes_) tile.splits /= 2;
  return tile;
}

RotateParams CardModel::rotation(Stream stream, const StepSize& size) const {
  const StepInput::Arrays in = input_->on_card(size);
  RotateParams p{};
  p.inv_freq = inv_freq_, p.position = in.position, p.tokens = size.rows;
  p.eps = s_.inner_eps;
  p.attention_scaling = s_.rope_scaling, p.interleaved = s_.rope_interleaved;
  p.sequence = in.sequence, p.max_pages = s_.max_pages;
  p.type = Out16::kF16, p.stream = stream;
  return p;
}

void CardModel::attention(Stream stream, int index, const StepSize& size) const {
  const Layer& layer = layers_[index];
  norm(stream, layer.w.attention_norm, index ? delta_ : nullptr, size);
  prepare(stream, main_, layer.qkv, rows_of(normed_, size, s_.hidden), 0, s_.hidden, size);
  multiply(stream, main_, layer.qkv, size, main_.wide);
  if (s_.latent()) {
    latent_attention(stream, layer, size);
    prepare(stream, main_, layer.o, mixed_, 0, s_.mixed(), size);
  } else {
    grouped_attention(stream, layer, size);
    prepare(stream, main_, layer.o, attended_, 1, s_.mixed(), size);
  }
  multiply(stream, main_, layer.o, size, rows_of(delta_, size, s_.hidden));
}

void CardModel::attend(Stream stream, const Layer& layer, const StepSize& size) const {
  const StepInput::Arrays in = input_->on_card(size);
  FlashParams flash = flash_shape(size);
  flash.q = queries_, flash.k = layer.keys, flash.v = layer.values, flash.out = attended_;
  flash.k_rope = layer.rope, flash.k_exponents = layer.key_exponents;
  flash.v_exponents = layer.value_exponents;
  flash.first_token = in.first, flash.kv_length = in.length, flash.pages = in.pages;
  flash.partial = flash_partial_, flash.stream = stream;
  launch_flash(flash, flash_tile(flash));
}

void CardModel::latent_attention(Stream stream, const Layer& layer, const StepSize& size) const {
  const int m = size.rows, head = s_.nope + s_.rope, width = s_.heads * head;
  // The keys' latent and rotated part, to the cache.
  const Result latent = result(layer.qkv, main_.wide, m, s_.q_lora ? s_.q_lora : width);
  RotateParams keys = rotation(stream, size);
  keys.x = latent.at, keys.stride = latent.stride, keys.heads = 1;
  keys.norm_weight = layer.w.kv_norm, keys.norm_dim = s_.kv_lora;
  keys.dim = s_.kv_lora + s_.rope, keys.rope_begin = s_.kv_lora, keys.rope_dim = s_.rope;
  keys.out = layer.keys, keys.pages = input_->on_card(size).pages;
  if (s_.fp8_cache) {  // the rotated part by itself: it decides who is near, and stays in f16
    RotateParams rope = keys;
    rope.x = latent.at + s_.kv_lora, rope.norm_weight = nullptr, rope.norm_dim = 0;
    rope.dim = s_.rope, rope.rope_begin = 0, rope.out = layer.rope;
    launch_rotate(rope);
    keys.dim = s_.kv_lora, keys.rope_dim = 0, keys.exponents = layer.key_exponents;
  }
  launch_rotate(keys);
  Result q = result(layer.qkv, main_.wide, m, 0);
  if (s_.q_lora) {  // the queries' low-rank form: a norm and nothing rotated
    RotateParams low = rotation(stream, size);
    low.x = q.at, low.stride = q.stride, low.heads = 1, low.dim = s_.q_lora;
    low.norm_weight = layer.w.q_norm, low.norm_dim = s_.q_lora, low.out = low_;
    launch_rotate(low);
    prepare(stream, main_, layer.q_b, low_, 1, s_.q_lora, size);
    multiply(stream, main_, layer.q_b, size, main_.wide);
    q = {main_.wide, width};
  }
  if (multiplies_heads_dense(size))
    heads_on_tensor_cores(stream, layer, size, q);
  else
    launch_head_product({q.at, layer.w.k_b, absorbed_, q.stride, head, m, s_.heads, s_.kv_lora,
                         s_.nope, false, stream});
  RotateParams queries = rotation(stream, size);
  queries.x = absorbed_, queries.stride = s_.kv_lora, queries.heads = s_.heads;
  queries.second = q.at + s_.nope, queries.second_stride = head;
  queries.dim = s_.kv_lora + s_.rope, queries.rope_begin = s_.kv_lora, queries.rope_dim = s_.rope;
  queries.out = queries_;
  launch_rotate(queries);
  attend(stream, layer, size);
  const int64_t latents = int64_t{s_.heads} * s_.kv_lora;
  if (!multiplies_heads_dense(size))
    return launch_head_product({attended_, layer.w.v_b, mixed_, latents, s_.kv_lora, m, s_.heads,
                                s_.v, s_.kv_lora, true, stream});
  DenseGemmParams p{attended_, nullptr, layer.w.v_b, mixed_, m, s_.v, s_.kv_lora, false, true,
                    stream};
  p.products = s_.heads, p.x_stride = latents, p.y_stride = s_.mixed();
  p.x_step = s_.kv_lora, p.w_step = int64_t{s_.v} * s_.kv_lora, p.y_step = s_.v;
  launch_dense_gemm(p);
}

bool CardModel::multiplies_heads_dense(const StepSize& size) const {
  return size.dense && s_.nope % 8 == 0 && (s_.nope + s_.rope) % 8 == 0 && s_.kv_lora % 8 == 0 &&
         s_.v % 2 == 0;
}

void CardModel::heads_on_tensor_cores(Stream stream, const Layer& layer, const StepSize& size,
                                      const Result& q) const {
  const int head = s_.nope + s_.rope, width = s_.heads * head;
  // What was prepared for the product before is not read any more.
  launch_rows16({q.at, nullptr, q.stride, main_.prepared.fragments, main_.prepared.scales,
                 size.rows, width, 0, stream});
  DenseGemmParams p{main_.prepared.fragments, nullptr, layer.w.k_b, absorbed_, size.rows,
                    s_.kv_lora, s_.nope, false, true, stream};
  p.scales = main_.prepared.scales, p.products = s_.heads;
  p.x_stride = width, p.y_stride = int64_t{s_.heads} * s_.kv_lora;
  p.x_step = head, p.w_step = int64_t{s_.kv_lora} * s_.nope, p.y_step = s_.kv_lora;
  launch_dense_gemm(p);
}

void CardModel::grouped_attention(Stream stream, const Layer& layer, const StepSize& size) const {
  const auto part = [&](int which, int heads, const float* norm) {
    const int before = which == 0 ? 0 : (s_.heads + (which - 1) * s_.kv_heads) * s_.head_dim;
    RotateParams p = rotation(stream, size);
    p.x = result(layer.qkv, main_.wide, size.rows, before).at, p.stride = s_.head_dim;
    p.bias = layer.w.bias[which], p.heads = heads, p.dim = s_.head_dim;
    p.norm_weight = norm, p.norm_dim = norm ? s_.head_dim : 0;
    p.rope_dim = which == 2 ? 0 : s_.rope;
    return p;
  };
  RotateParams queries = part(0, s_.heads, layer.w.q_norm);
  queries.out = queries_;
  launch_rotate(queries);
  for (const int which : {1, 2}) {
    RotateParams cached = part(which, s_.kv_heads, which == 1 ? layer.w.kv_norm : nullptr);
    cached.out = which == 1 ? layer.keys : layer.values, cached.pages = input_->on_card(size).pages;
    cached.exponents = which == 1 ? nullptr : layer.value_exponents;
    launch_rotate(cached);
  }
  attend(stream, layer, size);
}

}  // namespace kt::cuda
