// A decoder of DeepSeek-V3's width with random weights, for speed only: attention, shared experts,
// dense layers and head on the card, routed experts on the CPU. Sixteen rows of a matrix are
// quantised and repeated; what is read per token, and how, is as with real ones.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "base/half.h"
#include "cpu/ops/ffn.h"
#include "cuda/int4_gemm/placed.h"
#include "cuda/model/card_model.h"
#include "quant/convert.h"
#include "quant/formats.h"
#include "quant/quantize.h"

namespace kt::bench {

struct V3Options {
  int dense_layers = 1, moe_layers = 3;
  int experts = 128;  // per layer
  int banks = 0;      // layers take turns with so many sets of experts; 0: each has its own
  std::vector<std::shared_ptr<const cpu::Experts>> given;  // sets from an earlier model
  int batch = 1, context = 4096, vocab = 8192;
  bool narrow = false;  // widths of a test
  int int4 = -1;        // linears on the card: values that share a scale, 0 keeps Q4_K's codes
};

struct V3 {
  cuda::CardShape shape;
  std::vector<cuda::CardLayer> layers;
  const float *final_norm, *inv_freq;
  cuda::CudaMatrix head;
  std::vector<std::shared_ptr<const cpu::Experts>> experts;  // of each MoE layer
  size_t expert_bytes = 0;                                   // of one expert
};

class V3Maker {
 public:
  V3Maker(cuda::Memory& memory, cpu::Context& context) : memory_(memory), context_(context) {}

  V3 make(const V3Options& o, int sms, int arch) {
    int4_ = o.int4;
    V3 model{};
    cuda::CardShape& s = model.shape;
    s.hidden = o.narrow ? 256 : 7168, s.heads = o.narrow ? 4 : 128;
    s.q_lora = o.narrow ? 256 : 1536, s.kv_lora = o.narrow ? 256 : 512;
    s.nope = o.narrow ? 64 : 128, s.rope = o.narrow ? 32 : 64, s.v = o.narrow ? 64 : 128;
    s.expert_inner = o.narrow ? 256 : 2048;
    const int dense_inner = o.narrow ? 512 : 18432;
    s.rows = s.sequences = o.batch, s.experts = o.experts, s.top_k = std::min(8, o.experts);
    s.vocab = o.vocab;
    s.max_pages = o.context / 64 + 2, s.pages = s.max_pages * o.batch;
    s.scale = 1 / std::sqrt(float(s.nope + s.rope));
    s.sigmoid = s.norm_topk_prob = true, s.routed_scaling_factor = 2.5f;
    s.sms = sms, s.arch = arch;
    for (int i = 0; i < o.dense_layers + o.moe_layers; ++i) {
      cuda::CardLayer w{};
      w.attention_norm = ones(s.hidden), w.ffn_norm = ones(s.hidden);
      w.q_norm = ones(s.q_lora), w.kv_norm = ones(s.kv_lora);
      w.qkv = {matrix(s.q_lora + s.kv_lora + s.rope, s.hidden, kQ4)};
      w.q_b = matrix(s.heads * (s.nope + s.rope), s.q_lora, kQ4);
      w.o = matrix(s.hidden, s.heads * s.v, kQ4);
      w.k_b = halves(size_t(s.heads) * s.kv_lora * s.nope, s.nope);
      w.v_b = halves(size_t(s.heads) * s.v * s.kv_lora, s.kv_lora);
      const bool moe = i >= o.dense_layers;
      w.ffn = moe ? cuda::Ffn::kRouted : cuda::Ffn::kDense;
      const int inner = moe ? s.expert_inner : dense_inner;
      w.gate_up = {matrix(2 * inner, s.hidden, kQ4)};
      w.down = matrix(s.hidden, inner, kQ6);
      if (moe) {
        w.router = memory_.put(floats(size_t(o.experts) * s.hidden, s.hidden));
        const size_t turn = i - o.dense_layers, sets = o.banks > 0 ? o.banks : turn + 1;
        model.experts.push_back(!o.given.empty() ? o.given[turn % o.given.size()]
                                : turn >= sets   ? model.experts[turn % sets]
                                                 : bank(o.experts, s.expert_inner, s.hidden));
      }
      model.layers.push_back(w);
    }
    model.expert_bytes =
        2 * bytes(s.expert_inner, s.hidden, kQ4) + bytes(s.hidden, s.expert_inner, kQ6);
    model.final_norm = ones(s.hidden);
    std::vector<float> frequencies;
    for (int i = 0; i < s.rope / 2; ++i) frequencies.push_back(std::pow(1e4f, -2.0f * i / s.rope));
    model.inv_freq = memory_.put(frequencies);
    model.head = matrix(o.vocab, s.hidden, kQ6);
    return model;
  }

 private:
  static constexpr int kQ4 = quant::Q4_K::kGgufId, kQ6 = quant::Q6_K::kGgufId, kSample = 16;

  static size_t bytes(int n, int k, int gguf_id) { return quant::row_bytes(gguf_id, k) * n; }

  /// `count` values with the standard deviation a trained matrix over k has, a few thousand of them
  /// over and over.
  std::vector<float> floats(size_t count, int k) {
    std::normal_distribution<float> normal(0, 1 / std::sqrt(float(k)));
    std::vector<float> pattern(std::min<size_t>(count, 8191));  // a prime: rows differ
    for (float& v : pattern) v = normal(random_);
    std::vector<float> values(count);
    for (size_t i = 0; i < count; ++i) values[i] = pattern[i % pattern.size()];
    return values;
  }

  const float* ones(int n) { return memory_.put(std::vector<float>(n, 1.0f)); }

  cuda::half_t* halves(size_t count, int k) {
    std::vector<cuda::half_t>& rounded = halves_[{count, k}];
    if (rounded.empty())
      for (const float v : floats(count, k)) rounded.push_back({float_to_half(v)});
    return memory_.put(rounded);
  }

  /// Blocks of 16 rows of k values.
  const std::vector<uint8_t>& sample(int k, int gguf_id) {
    std::vector<uint8_t>& blocks = samples_[{k, gguf_id}];
    if (blocks.empty()) {
      blocks.resize(bytes(kSample, k, gguf_id));
      quant::quantize(gguf_id, floats(size_t(kSample) * k, k), k, {}, blocks);
    }
    return blocks;
  }

  static std::vector<uint8_t> repeated(const std::vector<uint8_t>& part, int times) {
    std::vector<uint8_t> all;
    all.reserve(part.size() * times);
    for (int i = 0; i < times; ++i) all.insert(all.end(), part.begin(), part.end());
    return all;
  }

  /// Strips of 64 equal rows' worth of weights over and over; scales stand group by group.
  cuda::CudaMatrix int4_matrix(int n, int k, int gguf_id) {
    const cuda::ConvertedInt4 part = cuda::convert_int4(
        repeated(sample(k, gguf_id), 64 / kSample), gguf_id, 64, k, int4_, 1);
    const cuda::PlacedInt4 one = part.matrix, all{n, k, one.group, one.has_offsets};
    const int strips = (n + 63) / 64;
    std::vector<uint8_t> bytes;
    bytes.reserve(all.bytes());
    const auto append = [&](size_t at, size_t count) {
      for (int i = 0; i < strips; ++i)
        bytes.insert(bytes.end(), part.bytes.begin() + at, part.bytes.begin() + at + count);
    };
    append(0, one.weight_bytes());
    for (size_t at = one.weight_bytes(); at < part.bytes.size(); at += 128) append(at, 128);
    return {memory_.put(bytes), n, k, one.type()};
  }

  cuda::CudaMatrix matrix(int n, int k, int gguf_id) {
    if (int4_ >= 0) return int4_matrix(n, k, gguf_id);
    const std::vector<uint8_t>& blocks = sample(k, gguf_id);
    std::vector<uint8_t> records(quant::r16_bytes(gguf_id, blocks.size(), kSample));
    quant::r16_pack(gguf_id, blocks, kSample, records);
    return {memory_.put(repeated(records, n / kSample)), n, k, gguf_id};
  }

  std::shared_ptr<const cpu::Matrix> host_matrix(int n, int k, int gguf_id) {
    std::vector<uint8_t>& blocks = expert_blocks_[{k, gguf_id}];
    if (blocks.empty()) blocks = repeated(sample(k, gguf_id), n / kSample);
    return cpu::Matrix::repack(context_, blocks, gguf_id, n, k, "random");
  }

  std::shared_ptr<const cpu::Experts> bank(int count, int inner, int hidden) {
    std::vector<cpu::ExpertEntry> table;
    for (int e = 0; e < count; ++e)
      table.push_back({cpu::Where::kRam, true, host_matrix(inner, hidden, kQ4),
                       host_matrix(inner, hidden, kQ4), host_matrix(hidden, inner, kQ6)});
    return std::make_shared<cpu::Experts>(std::move(table));
  }

  cuda::Memory& memory_;
  cpu::Context& context_;
  std::mt19937 random_{5};
  int int4_ = -1;
  // By (k, type): 16 rows, and a whole matrix of experts.
  std::map<std::pair<int, int>, std::vector<uint8_t>> samples_, expert_blocks_;
  std::map<std::pair<size_t, int>, std::vector<cuda::half_t>> halves_;
};

/// The CPU's part of a step: a MoE layer's experts, counting the bytes it read.
struct ExpertJob {
  const cuda::CardModel* model;
  const V3* v3;
  cpu::Context* context;
  size_t bytes = 0;

  void run(int moe_layer) {
    const kt_cuda_job& host = model->host_job();
    const cuda::CardShape& s = v3->shape;
    const int picks = host.rows * s.top_k;
    const std::vector<cpu::Rounding> rounding(host.rows, cpu::Rounding::kExact);
    v3->experts[moe_layer]->forward(*context, host.x, host.rows, s.top_k, host.ids, host.weights,
                                    rounding.data(), host.out);
    int distinct = 0;
    for (int i = 0; i < picks; ++i)
      distinct +=
          host.ids[i] >= 0 && std::find(host.ids, host.ids + i, host.ids[i]) == host.ids + i;
    bytes += distinct * v3->expert_bytes;
  }
};

}  // namespace kt::bench
