#include "cuda/model/latent_model.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "cuda/attention/flash.h"
#include "quant/formats.h"

namespace kt::cuda {

namespace {

size_t matrix_bytes(const CudaMatrix& m) {
  const quant::FormatInfo* info = quant::find_format(m.gguf_id);
  if (!info) throw quant::unsupported_format(m.gguf_id);
  return size_t(round_up(m.n, 16)) * m.k / info->values_per_block * info->bytes_per_block;
}

void check_shape(const char* name, const CudaMatrix& m, int n, int k) {
  KT_CHECK(m && m.n == n && m.k == k, name, " is ", m.n, " x ", m.k, ", must be ", n, " x ", k);
}

FlashParams flash_shape(const LatentShape& s) {
  FlashParams p{};
  p.sequences = p.total_tokens = s.batch;
  p.max_tokens = 1;
  p.heads = s.heads, p.kv_heads = 1;
  p.qk_dim = s.kv_lora + s.rope, p.v_dim = s.kv_lora;
  p.max_pages = s.max_pages;
  p.scale = s.scale, p.k_scale = p.v_scale = 1;
  p.type = AttentionType::kF16;
  return p;
}

FlashTile flash_tile(const LatentShape& s) {
  return choose_flash_tile(flash_shape(s), s.max_pages * kPagePositions, s.sms, s.arch);
}

}  // namespace

LatentModel::LatentModel(const LatentShape& shape, std::vector<LatentLayer> layers,
                         const float* final_norm, CudaMatrix head, const float* inv_freq,
                         Memory& memory)
    : s_(shape),
      memory_(memory),
      tiles_(div_up(shape.batch, 8)),
      max_tiles_(moe_max_tiles(shape.batch, std::max(1, shape.experts), shape.top_k)),
      final_norm_(final_norm),
      inv_freq_(inv_freq) {
  KT_CHECK(s_.batch > 0 && s_.batch <= 64 && !layers.empty(), s_.batch, " rows of ", layers.size(),
           " layers");
  const int a_width = s_.q_lora + s_.kv_lora + s_.rope, qk = s_.kv_lora + s_.rope;
  const size_t rows = size_t(tiles_) * 8;
  int wide = std::max(a_width, s_.heads * (s_.nope + s_.rope)), inner = 0, deepest = s_.hidden;
  bool resident = false;
  for (const LatentLayer& w : layers) {
    check_shape("qkv_a", w.qkv_a, a_width, s_.hidden);
    check_shape("q_b", w.q_b, s_.heads * (s_.nope + s_.rope), s_.q_lora);
    check_shape("o", w.o, s_.hidden, s_.heads * s_.v);
    if (w.gate_up) check_shape("down", w.down, s_.hidden, w.gate_up.n / 2);
    KT_CHECK(w.moe || w.gate_up, "a layer without a feed-forward part");
    inner = std::max(inner, w.gate_up.n / 2);
    resident |= w.slots != nullptr;
    layers_.push_back({w, product(w.qkv_a), product(w.q_b), product(w.o), product(w.gate_up),
                       product(w.down), memory.take<half_t>(size_t(s_.pages) * 64 * qk)});
  }
  wide = std::max(wide, 2 * inner);
  deepest = std::max({deepest, s_.heads * s_.v, inner, s_.q_lora});
  head_ = product(head);
  for (Scratch* scratch : {&main_, &side_})
    *scratch = {{memory.take<half_t>(prepared_fragments(tiles_, deepest)),
                 memory.take<float>(prepared_sums(tiles_, deepest)), memory.take<float>(rows)},
                memory.take<float>(rows * wide)};
  hidden_ = memory.take<float>(rows * s_.hidden), delta_ = memory.take<float>(rows * s_.hidden);
  normed_ = memory.take<float>(rows * s_.hidden), shared_ = memory.take<float>(rows * s_.hidden);
  cpu_ = memory.take<float>(rows * s_.hidden);
  low_ = memory.take<half_t>(rows * s_.q_lora);
  absorbed_ = memory.take<float>(rows * s_.heads * s_.kv_lora);
  queries_ = memory.take<half_t>(rows * s_.heads * qk);
  latent_ = memory.take<half_t>(rows * s_.heads * s_.kv_lora);
  mixed_ = memory.take<float>(rows * s_.heads * s_.v);
  logits_ = memory.take<float>(rows * s_.vocab);
  flash_partial_ = static_cast<float*>(
      memory.device(flash_workspace_bytes(flash_shape(s_), flash_tile(s_)) + 4));
  const size_t input = size_t(s_.batch) * (4 + s_.max_pages) + 1;
  input_ = memory.take<int32_t>(input), host_input_ = memory.take_mapped<int32_t>(input);
  host_hidden_ = memory.take_mapped<float>(size_t(s_.batch) * s_.hidden);
  host_logits_ = memory.take_mapped<float>(size_t(s_.batch) * s_.vocab);

  const size_t assignments = size_t(s_.batch) * std::max(1, s_.top_k);
  router_logits_ = memory.take<float>(size_t(s_.batch) * std::max(1, s_.experts));
  weights_ = memory.take<float>(assignments), ids_ = memory.take<int32_t>(assignments);
  cpu_ids_ = memory.take<int32_t>(assignments), places_ = memory.take<int32_t>(assignments);
  none_ = memory.put(std::vector<int32_t>(assignments, -1));
  host_x_ = memory.take_mapped<float>(size_t(s_.batch) * s_.hidden);
  host_weights_ = memory.take_mapped<float>(assignments);
  host_ids_ = memory.take_mapped<int32_t>(assignments);
  host_ = {host_x_, host_ids_, host_weights_,
           memory.take_mapped<float>(size_t(s_.batch) * s_.hidden)};
  if (!resident) return;
  const size_t places = size_t(max_tiles_) * 8;
  const int deep = std::max(s_.hidden, s_.expert_inner);
  sources_ = memory.take<int32_t>(places), num_items_ = memory.take<int32_t>(1);
  gate_items_ = memory.take<GemvItem>(s_.experts), up_items_ = memory.take<GemvItem>(s_.experts);
  down_items_ = memory.take<GemvItem>(s_.experts);
  expert_gate_ = memory.take<float>(places * s_.expert_inner);
  expert_up_ = memory.take<float>(places * s_.expert_inner);
  expert_y_ = memory.take<float>(places * s_.hidden);
  expert_prepared_ = {memory.take<half_t>(prepared_fragments(max_tiles_, deep)),
                      memory.take<float>(prepared_sums(max_tiles_, deep)),
                      memory.take<float>(places)};
}

LatentModel::Product LatentModel::product(const CudaMatrix& matrix) {
  if (!matrix) return {matrix, nullptr};
  return {matrix, memory_.put(std::vector<GemvItem>{{matrix.weights, nullptr, 0, tiles_}})};
}

std::vector<StepLayer> LatentModel::step_layers() const {
  std::vector<StepLayer> found;
  for (const Layer& layer : layers_)
    found.push_back({layer.w.moe, layer.w.moe && bool(layer.w.gate_up),
                     layer.w.moe && layer.w.cpu_experts, layer.w.slots != nullptr});
  return found;
}

void LatentModel::begin_step(const float* embeddings, const int32_t* positions,
                             const std::vector<std::vector<int32_t>>& pages) {
  const int m = s_.batch;
  KT_CHECK(int(pages.size()) == m, pages.size(), " block tables for ", m, " rows");
  std::memcpy(host_hidden_, embeddings, sizeof(float) * m * s_.hidden);
  int32_t* const table = host_input_ + 4 * m + 1;
  for (int i = 0; i < m; ++i) {
    const int needed = positions[i] / kPagePositions + 1;
    KT_CHECK(positions[i] >= 0 && needed <= int(pages[i].size()) && needed <= s_.max_pages,
             "position ", positions[i], " of row ", i, " has no page");
    host_input_[i] = positions[i];
    host_input_[m + i] = i;
    host_input_[2 * m + i] = positions[i] + 1;
    host_input_[3 * m + i] = i;
    for (int page = 0; page < s_.max_pages; ++page)
      table[i * s_.max_pages + page] = page < needed ? pages[i][page] : 0;
  }
  host_input_[4 * m] = m;
}

void LatentModel::launch(Stream stream, StepOp op, int layer) {
  const int64_t row = int64_t{s_.hidden} * s_.batch * 4, picks = int64_t{s_.top_k} * s_.batch * 4;
  switch (op) {
    case StepOp::kEmbed: {
      const int64_t input = (int64_t{s_.batch} * (4 + s_.max_pages) + 1) * 4;
      return launch_copy({{{host_hidden_, hidden_, row}, {host_input_, input_, input}}, 2, stream});
    }
    case StepOp::kAttention:
      return attention(stream, layer);
    case StepOp::kDenseFfn:
      norm(stream, layers_[layer].w.ffn_norm, delta_);
      return feed_forward(stream, main_, layers_[layer], delta_);
    case StepOp::kRouter:
      return router(stream, layers_[layer]);
    case StepOp::kCopyToHost:
      return launch_copy({{{normed_, host_x_, row},
                           {layers_[layer].w.slots ? cpu_ids_ : ids_, host_ids_, picks},
                           {weights_, host_weights_, picks}},
                          3,
                          stream});
    case StepOp::kSharedExpert:
      return feed_forward(stream, side_, layers_[layer], shared_);
    case StepOp::kResidentExperts:
      return resident_experts(stream, layers_[layer]);
    case StepOp::kCopyFromHost:
      return launch_copy({{{host_.out, cpu_, row}}, 1, stream});
    case StepOp::kCombine:
      return combine(stream, layers_[layer]);
    case StepOp::kHead:
      return head(stream);
    case StepOp::kSample:
      throw Unsupported("sampling is launched by its caller");
  }
}

void LatentModel::prepare(Stream stream, const Scratch& scratch, const void* x, int type,
                          int64_t stride, int k, const void* up) const {
  launch_prepare({x, up, stride, nullptr, scratch.prepared, s_.batch, k, tiles_,
                  static_cast<uint8_t>(type), stream});
}

void LatentModel::multiply(Stream stream, const Scratch& scratch, const Product& product,
                           float* y) const {
  const GemvParams p{product.item,
                     nullptr,
                     scratch.prepared,
                     y,
                     1,
                     tiles_,
                     product.matrix.n,
                     product.matrix.k,
                     product.matrix.gguf_id,
                     WeightLayout::kR16,
                     stream};
  launch_quant_gemv(p, choose_gemv_tile(p, s_.sms));
}

void LatentModel::norm(Stream stream, const float* weight, const float* delta) const {
  launch_rms_norm(
      {hidden_, delta, weight, normed_, nullptr, s_.batch, s_.hidden, s_.eps, Out16::kF16, stream});
}

void LatentModel::attention(Stream stream, int index) {
  const Layer& layer = layers_[index];
  const int m = s_.batch, a_width = layer.qkv_a.matrix.n, head = s_.nope + s_.rope;
  const int32_t *positions = input_, *sequences = input_ + m, *lengths = input_ + 2 * m,
                *first = input_ + 3 * m, *pages = input_ + 4 * m + 1;
  norm(stream, layer.w.attention_norm, index ? delta_ : nullptr);
  prepare(stream, main_, normed_, 0, s_.hidden, s_.hidden);
  multiply(stream, main_, layer.qkv_a, main_.wide);

  RotateParams rotate{};
  rotate.inv_freq = inv_freq_, rotate.position = positions, rotate.tokens = m, rotate.eps = s_.eps;
  rotate.attention_scaling = s_.rope_scaling, rotate.interleaved = s_.rope_interleaved;
  rotate.type = Out16::kF16;
  // The keys' latent and rotated part, to the cache.
  RotateParams keys = rotate;
  keys.x = main_.wide + s_.q_lora, keys.stride = a_width, keys.heads = 1;
  keys.norm_weight = layer.w.kv_norm, keys.norm_dim = s_.kv_lora;
  keys.dim = s_.kv_lora + s_.rope, keys.rope_begin = s_.kv_lora, keys.rope_dim = s_.rope;
  keys.out = layer.cache, keys.pages = pages, keys.sequence = sequences;
  keys.max_pages = s_.max_pages, keys.stream = stream;
  launch_rotate(keys);
  // The queries' low-rank form: a norm and nothing rotated.
  RotateParams low = rotate;
  low.x = main_.wide, low.stride = a_width, low.heads = 1, low.dim = s_.q_lora;
  low.norm_weight = layer.w.q_norm, low.norm_dim = s_.q_lora, low.out = low_, low.stream = stream;
  launch_rotate(low);
  prepare(stream, main_, low_, 1, s_.q_lora, s_.q_lora);
  multiply(stream, main_, layer.q_b, main_.wide);

  launch_head_product({main_.wide, layer.w.k_b, absorbed_, int64_t{s_.heads} * head, head, m,
                       s_.heads, s_.kv_lora, s_.nope, false, stream});
  RotateParams queries = rotate;
  queries.x = absorbed_, queries.stride = s_.kv_lora, queries.heads = s_.heads;
  queries.second = main_.wide + s_.nope, queries.second_stride = head;
  queries.dim = s_.kv_lora + s_.rope, queries.rope_begin = s_.kv_lora, queries.rope_dim = s_.rope;
  queries.out = queries_, queries.stream = stream;
  launch_rotate(queries);

  FlashParams flash = flash_shape(s_);
  flash.q = queries_, flash.k = layer.cache, flash.out = latent_;
  flash.first_token = first, flash.kv_length = lengths, flash.pages = pages;
  flash.partial = flash_partial_, flash.stream = stream;
  launch_flash(flash, flash_tile(s_));

  launch_head_product({latent_, layer.w.v_b, mixed_, int64_t{s_.heads} * s_.kv_lora, s_.kv_lora, m,
                       s_.heads, s_.v, s_.kv_lora, true, stream});
  prepare(stream, main_, mixed_, 0, int64_t{s_.heads} * s_.v, s_.heads * s_.v);
  multiply(stream, main_, layer.o, delta_);
}

void LatentModel::feed_forward(Stream stream, const Scratch& scratch, const Layer& layer,
                               float* out) const {
  const int inner = layer.gate_up.matrix.n / 2;
  prepare(stream, scratch, normed_, 0, s_.hidden, s_.hidden);
  multiply(stream, scratch, layer.gate_up, scratch.wide);
  prepare(stream, scratch, scratch.wide, 0, 2 * inner, inner, scratch.wide + inner);
  multiply(stream, scratch, layer.down, out);
}

void LatentModel::router(Stream stream, const Layer& layer) const {
  norm(stream, layer.w.ffn_norm, delta_);
  launch_dense_gemv(
      {normed_, layer.w.router, router_logits_, s_.batch, s_.experts, s_.hidden, 0, stream});
  launch_router({router_logits_, layer.w.router_bias, ids_, weights_, s_.batch, s_.experts,
                 s_.top_k, s_.n_group, s_.topk_group, s_.sigmoid, s_.group_sum_of_two,
                 s_.norm_topk_prob, s_.routed_scaling_factor, stream});
  if (layer.w.slots)
    launch_route({ids_, layer.w.slots, gate_items_, up_items_, down_items_, num_items_, sources_,
                  places_, cpu_ids_, s_.batch, s_.experts, s_.top_k, max_tiles_, stream});
}

void LatentModel::resident_experts(Stream stream, const Layer& layer) const {
  const int most = std::min(s_.experts, s_.batch * s_.top_k), inner = s_.expert_inner;
  const auto grouped = [&](const GemvItem* items, const CudaMatrix& matrix, float* y) {
    const GemvParams p{items,    num_items_,     expert_prepared_,   y,     most, tiles_, matrix.n,
                       matrix.k, matrix.gguf_id, WeightLayout::kR16, stream};
    launch_quant_gemv(p, choose_gemv_tile(p, s_.sms));
  };
  launch_prepare({normed_, nullptr, s_.hidden, sources_, expert_prepared_, s_.batch, s_.hidden,
                  max_tiles_, 0, stream});
  grouped(gate_items_, layer.w.expert, expert_gate_);
  grouped(up_items_, layer.w.expert, expert_up_);
  launch_prepare({expert_gate_, expert_up_, inner, sources_, expert_prepared_, max_tiles_ * 8,
                  inner, max_tiles_, 0, stream, true});
  grouped(down_items_, layer.w.expert_down, expert_y_);
}

void LatentModel::combine(Stream stream, const Layer& layer) const {
  launch_combine({expert_y_, layer.w.slots ? places_ : none_, weights_,
                  layer.gate_up.item ? shared_ : nullptr, layer.w.cpu_experts ? cpu_ : nullptr,
                  delta_, s_.batch, s_.hidden, s_.top_k, stream});
}

void LatentModel::head(Stream stream) const {
  norm(stream, final_norm_, delta_);
  prepare(stream, main_, normed_, 0, s_.hidden, s_.hidden);
  multiply(stream, main_, head_, logits_);
  launch_copy({{{logits_, host_logits_, int64_t{s_.batch} * s_.vocab * 4}}, 1, stream});
}

int64_t LatentModel::step_bytes(int length) const {
  size_t bytes = matrix_bytes(head_.matrix);
  for (const Layer& layer : layers_) {
    for (const Product* p : {&layer.qkv_a, &layer.q_b, &layer.o, &layer.gate_up, &layer.down})
      if (p->item) bytes += matrix_bytes(p->matrix);
    bytes += size_t(s_.heads) * s_.kv_lora * (s_.nope + s_.v) * sizeof(half_t);
    bytes += size_t(s_.batch) * length * (s_.kv_lora + s_.rope) * sizeof(half_t);
    if (layer.w.moe) bytes += size_t(s_.experts) * s_.hidden * sizeof(float);
  }
  return static_cast<int64_t>(bytes);
}

}  // namespace kt::cuda
