// A decoder of the DeepSeek-V2/V3 kind on one card, for generated tokens: what its operations
// launch. The order of the operations and the way to the CPU's experts is step.h's; this file's
// part is their bodies. Weights keep the file's bytes in R16; sums and the residual stream are
// float.
//
// Embeddings come from the host (a row is read per token, the table stays in RAM), and so do
// positions and block tables: begin_step() writes them to mapped memory, the graph's first node
// copies them. Every pointer is fixed at construction, so that a captured step can be replayed.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/graph/step.h"
#include "cuda/layer/layer.h"
#include "cuda/model/memory.h"
#include "cuda/moe/moe.h"
#include "cuda/quant_gemv/quant_gemv.h"

namespace kt::cuda {

/// A matrix on the card in R16; several with the same k may stand below one another.
struct CudaMatrix {
  const uint8_t* weights = nullptr;
  int n = 0, k = 0, gguf_id = 0;
  explicit operator bool() const { return weights != nullptr; }
};

struct LatentShape {
  int batch = 1;  // tokens of a step, each of a sequence of its own
  int hidden = 0, heads = 0, q_lora = 0, kv_lora = 0, nope = 0, rope = 0, v = 0;
  int experts = 0, top_k = 0, expert_inner = 0;  // of MoE layers
  int vocab = 0;
  int pages = 0, max_pages = 0;  // of the cache per layer, and of a sequence
  float eps = 1e-6f, scale = 0,
        rope_scaling = 1;  // scale: of the scores; rope_scaling: of cos, sin
  bool rope_interleaved = true;
  int n_group = 1, topk_group = 1;
  bool sigmoid = false, group_sum_of_two = false, norm_topk_prob = false;
  float routed_scaling_factor = 1;
  int sms = 1, arch = 90;  // of the card
};

/// Pointers are to the card's memory. Norm weights: float.
struct LatentLayer {
  const float *attention_norm, *q_norm, *kv_norm, *ffn_norm;
  CudaMatrix qkv_a;          // [q_lora | kv_lora + rope, hidden]
  CudaMatrix q_b, o;         // [heads (nope + rope), q_lora], [hidden, heads v]
  const half_t* k_b;         // [heads, kv_lora, nope]: kv_b's key rows, transposed
  const half_t* v_b;         // [heads, v, kv_lora]
  CudaMatrix gate_up, down;  // the dense FFN, or the shared expert: [gate | up], down
  // Of MoE layers:
  bool moe = false;
  const float* router = nullptr;       // [experts, hidden]
  const float* router_bias = nullptr;  // [experts] or null
  const ExpertSlot* slots = nullptr;   // [experts], null: every expert is the CPU's
  bool cpu_experts = true;             // some have no slot
  CudaMatrix expert, expert_down;      // shapes and formats of the resident ones; no pointers
};

/// What a job of the CPU reads and writes: mapped host memory.
struct HostExperts {
  const float* x;        // [batch, hidden]
  const int32_t* ids;    // [batch, top_k], -1: on the card
  const float* weights;  // [batch, top_k]
  float* out;            // [batch, hidden]
};

class LatentModel {
 public:
  /// final_norm: float on the card; inv_freq: [rope / 2] on the card. Throws InvalidArgument for
  /// shapes the kernels do not take, and what Memory throws.
  LatentModel(const LatentShape& shape, std::vector<LatentLayer> layers, const float* final_norm,
              CudaMatrix head, const float* inv_freq, Memory& memory);

  const LatentShape& shape() const { return s_; }
  /// Layers as record_step wants them.
  std::vector<StepLayer> step_layers() const;
  /// Issues one operation's kernels; captured or run at once. Throws CudaError.
  void launch(Stream stream, StepOp op, int layer);

  /// Host side of a step, before its launch: embeddings [batch, hidden]; position of each row; the
  /// pages of its sequence, pages[row][position / 64].
  void begin_step(const float* embeddings, const int32_t* positions,
                  const std::vector<std::vector<int32_t>>& pages);
  /// After the step: logits [batch, vocab] of its rows, in mapped memory.
  const float* logits() const { return host_logits_; }
  /// Where the job of a MoE layer with CPU experts finds its data; one job is under way at a time.
  const HostExperts& host_experts() const { return host_; }
  /// Bytes of weights and cache a step reads at a context of `length` positions.
  int64_t step_bytes(int length) const;

 private:
  struct Product {
    CudaMatrix matrix;
    const GemvItem* item;
  };
  /// Activations on their way into a product; side and main stream have one each.
  struct Scratch {
    Prepared prepared;
    float* wide;  // [8 tiles, widest result]
  };
  struct Layer {
    LatentLayer w;
    Product qkv_a, q_b, o, gate_up, down;
    half_t* cache;  // [pages, 64, kv_lora + rope]
  };

  Product product(const CudaMatrix& matrix);
  void multiply(Stream stream, const Scratch& scratch, const Product& product, float* y) const;
  void prepare(Stream stream, const Scratch& scratch, const void* x, int type, int64_t stride,
               int k, const void* up = nullptr) const;
  void norm(Stream stream, const float* weight, const float* delta) const;
  void attention(Stream stream, int layer);
  void feed_forward(Stream stream, const Scratch& scratch, const Layer& layer, float* out) const;
  void router(Stream stream, const Layer& layer) const;
  void resident_experts(Stream stream, const Layer& layer) const;
  void combine(Stream stream, const Layer& layer) const;
  void head(Stream stream) const;

  LatentShape s_;
  Memory& memory_;
  int tiles_, max_tiles_;
  std::vector<Layer> layers_;
  const float *final_norm_, *inv_freq_;
  Product head_;
  Scratch main_, side_;
  // On the card; shapes in the constructor.
  float *hidden_, *delta_, *normed_, *absorbed_, *mixed_, *shared_, *cpu_, *router_logits_,
      *weights_, *logits_, *expert_gate_, *expert_up_, *expert_y_, *flash_partial_ = nullptr;
  half_t *low_, *queries_, *latent_;
  int32_t *input_, *ids_, *cpu_ids_, *places_, *sources_, *num_items_, *none_;
  GemvItem *gate_items_, *up_items_, *down_items_;
  Prepared expert_prepared_{};
  // Mapped.
  float *host_hidden_, *host_logits_;
  int32_t* host_input_;
  HostExperts host_{};
  float *host_x_, *host_weights_;
  int32_t* host_ids_;
};

}  // namespace kt::cuda
