#include "cuda/model/card_model.h"

#include <algorithm>

#include "base/error.h"
#include "cuda/gemm/rows16.h"
#include "cuda/int4_gemm/placed.h"
#include "quant/formats.h"

namespace kt::cuda {

namespace {

void check_shape(const char* name, const CudaMatrix& m, int n, int k) {
  KT_CHECK(m && m.n == n && m.k == k, name, " is ", m.n, " x ", m.k, ", must be ", n, " x ", k);
}

}  // namespace

WeightLayout layout_of(int gguf_id) {
  const bool floats = gguf_id == quant::F32::kGgufId || gguf_id == quant::F16::kGgufId ||
                      gguf_id == quant::BF16::kGgufId;
  return floats ? WeightLayout::kRows : WeightLayout::kR16;
}

size_t matrix_bytes(const CudaMatrix& m) {
  if (is_int4(m.gguf_id)) return placed_int4(m.gguf_id, m.n, m.k).bytes();
  const quant::FormatInfo* info = quant::find_format(m.gguf_id);
  if (!info) throw quant::unsupported_format(m.gguf_id);
  const int rows = layout_of(m.gguf_id) == WeightLayout::kRows ? m.n : round_up(m.n, 16);
  return size_t(rows) * m.k / info->values_per_block * info->bytes_per_block;
}

CardModel::CardModel(const CardShape& shape, std::vector<CardLayer> layers, const float* final_norm,
                     CudaMatrix head, const float* inv_freq, Memory& memory, Room room)
    : s_(shape),
      memory_(memory),
      final_norm_(final_norm),
      inv_freq_(inv_freq) {
  KT_CHECK(s_.rows > 0 && s_.sequences > 0 && s_.sequences <= s_.rows && !layers.empty(), s_.rows,
           " rows of ", s_.sequences, " sequences, ", layers.size(), " layers");
  KT_CHECK(s_.pages > 0 && s_.max_pages > 0, s_.pages, " pages, ", s_.max_pages, " of a sequence");
  s_.slice = s_.slice > 0 ? std::min(s_.slice, s_.rows) : s_.rows;
  KT_CHECK(s_.sequences <= s_.slice, s_.sequences, " sequences in ", s_.slice, " rows");
  head_rows_ = round_up(std::min(s_.rows, int{KT_CUDA_MOST_HEAD_ROWS}), 8);
  widest_ = round_up(std::max(s_.slice, head_rows_), 8);
  const size_t rows = widest_;
  int wide = s_.heads * (s_.nope + s_.rope), inner = 0;
  bool resident = false;
  for (const CardLayer& w : layers) {
    check_layer(w);
    Layer layer{.w = w,
                .qkv = product(w.qkv),
                .q_b = product({w.q_b}),
                .o = product({w.o}),
                .gate_up = product(w.gate_up),
                .down = product({w.down})};
    take_cache(layer);
    wide = std::max({wide, layer.qkv.n(), layer.gate_up.n()});
    inner = std::max(inner, layer.gate_up.n() / 2);
    resident |= w.slots != nullptr;
    layers_.push_back(std::move(layer));
  }
  if (s_.vocab > 0) {
    check_shape("head", head, s_.vocab, s_.hidden);
    KT_CHECK(final_norm, "a head without the norm before it");
    head_ = product({head});
  }
  const int queries = s_.latent() ? s_.heads * (s_.nope + s_.rope) : 0;
  const int deepest = std::max({s_.hidden, s_.mixed(), inner, s_.q_lora, queries});
  for (Scratch* scratch : {&main_, &side_})
    *scratch = {{memory.take<half_t>(prepared_fragments(tiles(widest_), deepest)),
                 memory.take<float>(prepared_sums(tiles(widest_), deepest)),
                 memory.take<float>(rows)},
                memory.take<float>(rows * wide), nullptr, nullptr, nullptr, nullptr};
  take_int4(memory, deepest);
  for (float** part : {&shared_, &cpu_}) *part = memory.take<float>(rows * s_.hidden);
  low_ = memory.take<half_t>(rows * std::max(1, s_.q_lora));
  absorbed_ = memory.take<float>(rows * s_.heads * std::max(1, s_.kv_lora));
  queries_ = memory.take<half_t>(rows * s_.heads * s_.qk());
  attended_ = memory.take<half_t>(rows * s_.heads * s_.attended());
  mixed_ = memory.take<float>(rows * s_.mixed());
  // Rows of a decode step are split most: prompts have rows enough to fill the card.
  for (int count = 1; count <= s_.sequences; count *= 2) {
    const FlashParams flash = flash_shape(StepSize::decode(count, true));
    flash_bytes_ = std::max(
        flash_bytes_, flash_workspace_bytes(flash, choose_flash_tile(
                                                       flash, s_.max_pages * kPagePositions,
                                                       s_.sms, s_.arch)));
  }
  flash_partial_ = static_cast<float*>(memory.device(flash_bytes_ + 4));
  const size_t head_rows = head_rows_;
  logits_ = memory.take<float>(std::max<size_t>(1, head_rows * s_.vocab));
  if (s_.vocab > 0) {
    host_logits_ = memory.take_mapped<float>(head_rows * s_.vocab);
    host_sampling_ = memory.take_mapped<CheckedSampling>(head_rows);
    host_tokens_ = memory.take_mapped<int32_t>(head_rows);
  }
  router_logits_ = memory.take<float>(size_t(s_.slice) * std::max(1, s_.experts));
  jobs_ = make_jobs(memory);
  experts_ = std::make_unique<CardExperts>(s_, memory);
  if (resident) {
    experts_->take_products();
    std::vector<const CardLayer*> all;
    for (const Layer& layer : layers_) all.push_back(&layer.w);
    experts_->take_int4(all);
  }
  if (room == Room::kAll) take_room(usable_room(memory.room()));
}

/// One page more than there are: for rows that fill a step up.
void CardModel::take_cache(Layer& layer) {
  const auto part = [&](int values, size_t bytes) {
    const size_t page = size_t(kPagePositions) * s_.kv_heads * values * bytes;
    uint8_t* const at = memory_.take<uint8_t>(page * (s_.pages + 1));
    layer.cache.push_back({at, page});
    return at;
  };
  if (!s_.fp8_cache) {
    layer.keys = part(s_.qk(), sizeof(half_t));
    if (!s_.latent()) layer.values = part(s_.head_dim, sizeof(half_t));
  } else if (s_.latent()) {
    layer.keys = part(s_.kv_lora, sizeof(fp8_t)), layer.key_exponents = part(1, 1);
    layer.rope = part(s_.rope, sizeof(half_t));
  } else {
    layer.keys = part(s_.qk(), sizeof(half_t));
    layer.values = part(s_.head_dim, sizeof(fp8_t)), layer.value_exponents = part(1, 1);
  }
}

void CardModel::check_layer(const CardLayer& w) const {
  if (s_.latent()) {
    const int queries = s_.heads * (s_.nope + s_.rope), latent = s_.kv_lora + s_.rope;
    int rows = 0;
    for (const CudaMatrix& part : w.qkv) {
      check_shape("a matrix of attention", part, part.n, s_.hidden);
      rows += part.n;
    }
    KT_CHECK(rows == (s_.q_lora ? s_.q_lora : queries) + latent, "attention's first products give ",
             rows, " values");
    if (s_.q_lora) check_shape("q_b", w.q_b, queries, s_.q_lora);
  } else {
    KT_CHECK(w.qkv.size() == 3, w.qkv.size(), " matrices for queries, keys and values");
    for (size_t i = 0; i < 3; ++i)
      check_shape("a matrix of attention", w.qkv[i],
                  (i == 0 ? s_.heads : s_.kv_heads) * s_.head_dim, s_.hidden);
  }
  check_shape("o", w.o, s_.hidden, s_.mixed());
  KT_CHECK(w.ffn != Ffn::kDense || !w.gate_up.empty(), "a layer without a feed-forward part");
  if (w.gate_up.empty()) return;
  int both = 0;
  for (const CudaMatrix& part : w.gate_up) {
    check_shape("gate and up", part, part.n, s_.hidden);
    both += part.n;
  }
  check_shape("down", w.down, s_.hidden, both / 2);
}

std::unique_ptr<CardJobs> CardModel::make_jobs(Memory& memory) const {
  std::vector<CardJobs::Part> parts;
  for (const Layer& layer : layers_) {
    const bool experts = layer.w.ffn == Ffn::kRouted && layer.w.cpu_experts;
    parts.push_back(experts                     ? CardJobs::Part::kExperts
                    : layer.w.ffn == Ffn::kCpu ? CardJobs::Part::kFeedForward
                                                : CardJobs::Part::kNothing);
  }
  return std::make_unique<CardJobs>(s_, parts, memory);
}

std::vector<StepLayer> CardModel::step_layers(const StepSize& size) const {
  std::vector<StepLayer> found;
  for (const Layer& layer : layers_) {
    const bool moe = layer.w.ffn == Ffn::kRouted;
    const bool streamed =
        moe && size.streams &&
        (!layer.rounds.empty() || (s_.is_long(size.rows) && experts_->streams_all(layer.w)));
    found.push_back({moe, moe && layer.gate_up, moe && layer.w.cpu_experts && !streamed,
                     moe && layer.w.slots != nullptr && !streamed, streamed,
                     size.defers && jobs_->layer_defers(static_cast<int>(found.size())),
                     layer.w.ffn == Ffn::kCpu});
  }
  return found;
}

void CardModel::launch(Stream stream, StepOp op, int index, const StepSize& size) {
  const int64_t row = int64_t{s_.hidden} * size.rows * 4,
                picks = int64_t{s_.top_k} * size.rows * 4;
  const Layer* const layer = index >= 0 ? &layers_[index] : nullptr;
  switch (op) {
    case StepOp::kEmbed:
      for (const StepSize& part : input_->slices_of(size))
        input_->bring(stream, part, rows_of(hidden_, part, s_.hidden));
      return;
    case StepOp::kAttention:
      for (const StepSize& part : input_->slices_of(size)) attention(stream, index, part);
      return;
    case StepOp::kDenseFfn:
      for (const StepSize& part : input_->slices_of(size)) {
        norm(stream, layer->w.ffn_norm, delta_, part);
        feed_forward(stream, main_, *layer, part, rows_of(delta_, part, s_.hidden));
      }
      return;
    case StepOp::kFfnNorm:
      return norm(stream, layer->w.ffn_norm, delta_, size);
    case StepOp::kRouter:
      for (const StepSize& part : input_->slices_of(size)) router(stream, *layer, part);
      if (layer->w.slots && !s_.is_long(size.rows))
        experts_->route(stream, layer->w, size.rows);
      return;
    case StepOp::kCopyToHost:
      return launch_copy({{{normed_, jobs_->x(), row},
                           {layer->w.slots ? experts_->cpu_ids() : ids_, jobs_->ids(), picks},
                           {weights_, jobs_->weights(), picks}},
                          layer->w.ffn == Ffn::kRouted ? 3 : 1,
                          stream});
    case StepOp::kSharedExpert:  // of long steps to where the experts' are added
      for (const StepSize& part : input_->slices_of(size))
        feed_forward(stream, side_, *layer, part,
                     s_.is_long(size.rows) ? rows_of(delta_, part, s_.hidden) : shared_);
      return;
    case StepOp::kResidentExperts:
      return experts_->resident(stream, layer->w, size);
    case StepOp::kStreamedExperts:
      return experts_->streamed(stream, layer->w, layer->rounds, addends(index, size), size);
    case StepOp::kCopyFromHost:
      return launch_copy(
          {{{jobs_->whole().out, layer->w.ffn == Ffn::kRouted ? cpu_ : delta_, row}}, 1, stream});
    case StepOp::kDeferredFromHost:
      return launch_copy({{{jobs_->late(), jobs_->late_on_card(), row}}, 1, stream});
    case StepOp::kCombine:
      return experts_->combine(stream, layer->w, addends(index, size), size);
    case StepOp::kHead:
      return head(stream, size);
    case StepOp::kSample:
      // Read and written where the host has it: a few bytes a row, and no copies around the kernel.
      return launch_sample(
          {logits_, host_sampling_, host_tokens_, size.head_rows, s_.vocab, stream});
  }
}

CardExperts::Addends CardModel::addends(int index, const StepSize& size) const {
  const Layer& layer = layers_[index];
  const bool is_owed = size.defers && index > 0 && jobs_->layer_defers(index - 1);
  return {layer.gate_up ? shared_ : nullptr, layer.w.shared_gate ? shared_weight_ : nullptr,
          layer.w.cpu_experts ? cpu_ : nullptr, is_owed ? jobs_->late_on_card() : nullptr};
}

void CardModel::norm(Stream stream, const float* weight, const float* delta,
                     const StepSize& size) const {
  launch_rms_norm({rows_of(hidden_, size, s_.hidden),
                   delta ? rows_of(delta, size, s_.hidden) : nullptr, weight,
                   rows_of(normed_, size, s_.hidden), nullptr, size.rows, s_.hidden, s_.eps,
                   Out16::kF16, stream});
}

void CardModel::router(Stream stream, const Layer& layer, const StepSize& size) const {
  norm(stream, layer.w.ffn_norm, delta_, size);
  launch_dense_gemv({rows_of(normed_, size, s_.hidden), layer.w.router, router_logits_, size.rows,
                     s_.experts, s_.hidden, 0, stream});
  launch_router({router_logits_, layer.w.router_bias, rows_of(ids_, size, s_.top_k),
                 rows_of(weights_, size, s_.top_k), size.rows, s_.experts, s_.top_k, s_.n_group,
                 s_.topk_group, s_.sigmoid, s_.group_sum_of_two, s_.norm_topk_prob,
                 s_.routed_scaling_factor, stream});
}

void CardModel::head(Stream stream, const StepSize& size) const {
  // Without a head only the last addition is wanted.
  norm(stream, s_.vocab > 0 ? final_norm_ : layers_[0].w.attention_norm, delta_, size);
  if (size.hidden_out)
    launch_copy({{{hidden_, input_->hidden(), int64_t{s_.hidden} * size.rows * 4}}, 1, stream});
  if (size.head_rows == 0) return;
  const int32_t* const rows = input_->head_rows();
  if (head_.has_int4())
    launch_rows16({normed_, nullptr, s_.hidden, main_.rows, main_.row_scales, size.head_rows,
                   s_.hidden, 0, stream, rows});
  else
    launch_prepare({normed_, nullptr, s_.hidden, rows, main_.prepared, size.rows, s_.hidden,
                    tiles(size.head_rows), 0, stream});
  multiply(stream, main_, head_, size.head_rows, logits_);
  if (size.sample) return;
  launch_copy(
      {{{logits_, host_logits_, int64_t{size.head_rows} * s_.vocab * 4}}, 1, stream});
}

void CardModel::copy_page(int from, int to) {
  KT_CHECK(from >= 0 && from < s_.pages && to >= 0 && to < s_.pages, "pages ", from, " and ", to,
           " of ", s_.pages);
  for (const Layer& layer : layers_) {
    for (const Layer::CachePart& part : layer.cache)
      memory_.copy(part.at + to * part.page_bytes, part.at + from * part.page_bytes,
                   part.page_bytes);
  }
}

int64_t CardModel::step_bytes(int length) const {
  size_t bytes = s_.vocab > 0 ? matrix_bytes(head_.parts[0]) : 0;
  for (const Layer& layer : layers_) {
    for (const Product* p : {&layer.qkv, &layer.q_b, &layer.o, &layer.gate_up, &layer.down})
      for (const CudaMatrix& part : p->parts) bytes += matrix_bytes(part);
    bytes += size_t(s_.heads) * s_.kv_lora * (s_.nope + s_.v) * sizeof(half_t);
    for (const Layer::CachePart& part : layer.cache)
      bytes += size_t(s_.rows) * length * part.page_bytes / kPagePositions;
    if (layer.w.ffn == Ffn::kRouted) bytes += size_t(s_.experts) * s_.hidden * sizeof(float);
  }
  return static_cast<int64_t>(bytes);
}

}  // namespace kt::cuda
