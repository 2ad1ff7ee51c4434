// What a run of layers on a card is made of: sizes, matrices, layers, and where experts are in RAM.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/common/types.h"
#include "cuda/model/dense.h"
#include "cuda/moe/moe.h"
#include "cuda/quant_gemv/quant_gemv.h"

namespace kt::cuda {

/// A matrix on the card: R16, rows of floats (F32, F16, BF16), or int4, whose type is below zero
/// (int4_gemm/placed.h). Several with the same k may stand below one another, but for int4.
struct CudaMatrix {
  const uint8_t* weights = nullptr;
  int n = 0, k = 0, gguf_id = 0;
  explicit operator bool() const { return weights != nullptr; }
};
/// Bytes of it. Throws Unsupported for types that do not exist.
size_t matrix_bytes(const CudaMatrix& matrix);
/// How products find its values.
WeightLayout layout_of(int gguf_id);

struct CardShape {
  int rows = 1;       // most tokens of a step; fewer where there is no room (CardModel::shape)
  int slice = 0;      // that attention and dense parts take at a time; 0: as many as rows
  int sequences = 1;  // most sequences of a step
  int hidden = 0, heads = 0;
  int rope = 0;                                  // rotated values of a head
  int q_lora = 0, kv_lora = 0, nope = 0, v = 0;  // latent attention; q_lora 0: none
  int kv_heads = 1, head_dim = 0;                // grouped-query: kv_lora is 0
  int experts = 0, top_k = 0, expert_inner = 0;            // of MoE layers
  int vocab = 0;                // 0: norm and head are not on this card
  int pages = 0, max_pages = 0;  // of the cache per layer, and of a sequence
  int deferred = 0;      // of a token's experts, so many of the least are added by the next layer
  int stream_slots = 0;  // most experts that are on the card while as many others follow; 0: none
  int dense_rows = kDenseRows;       // of a step, from which its products dequantise
  size_t dense_bytes = kDenseBytes;  // of weights dequantised at a time, at most
  float eps = 1e-6f, inner_eps = 1e-6f;  // of the layers' norms, and of attention's own
  float scale = 0, rope_scaling = 1;     // of the scores; of cos and sin
  bool rope_interleaved = true;
  bool fp8_cache = false;  // latents and values in E4M3, a power of two per position and head
  int n_group = 1, topk_group = 1;
  bool sigmoid = false, group_sum_of_two = false, norm_topk_prob = false;
  float routed_scaling_factor = 1;
  int sms = 1, arch = 90;  // of the card

  /// Whether a step of so many rows is longer than a slice: then its slices go through each layer
  /// one after another, and its experts see all of its rows at once.
  bool is_long(int step_rows) const { return step_rows > slice; }
  bool latent() const { return kv_lora > 0; }
  int qk() const { return latent() ? kv_lora + rope : head_dim; }   // as attention reads it
  int attended() const { return latent() ? kv_lora : head_dim; }    // what it gives, per head
  int mixed() const { return heads * (latent() ? v : head_dim); }   // what o reads
};

/// Where a layer's feed-forward part is.
enum class Ffn : uint8_t {
  kDense,   // on the card
  kRouted,  // router and shared expert on the card, experts there or on the CPU
  kCpu,     // one job of the CPU
};

/// An expert's matrices in host memory, each in pieces that follow one another on the card.
struct ExpertSource {
  struct Piece {
    const uint8_t* at;
    size_t bytes;
  };
  std::vector<Piece> gate, up, down;
};

/// What experts of a layer are alike in: shapes and formats, no pointers.
struct ExpertMatrices {
  CudaMatrix gate, up, down;
};

/// Pointers are to the card's memory. Norm weights and biases: float.
struct CardLayer {
  const float *attention_norm, *ffn_norm;
  // Latent: [q_lora | kv_lora + rope, hidden], where there is no q_lora [heads (nope + rope)] and
  // [kv_lora + rope] as two; grouped-query: queries, keys, values.
  std::vector<CudaMatrix> qkv;
  const float *q_norm, *kv_norm;   // grouped-query: per head, or null
  const float* bias[3] = {};       // grouped-query: of queries, keys, values, or null
  CudaMatrix q_b, o;               // [heads (nope + rope), q_lora], [hidden, mixed()]
  const half_t* k_b = nullptr;     // [heads, kv_lora, nope]: kv_b's key rows, transposed
  const half_t* v_b = nullptr;     // [heads, v, kv_lora]
  Ffn ffn = Ffn::kDense;
  std::vector<CudaMatrix> gate_up;  // the dense FFN, or the shared expert: [gate | up], or two
  CudaMatrix down;
  // Of routed ones:
  const float* router = nullptr;         // [experts, hidden]
  const float* router_bias = nullptr;    // [experts] or null
  const float* shared_gate = nullptr;    // [hidden]: a sigmoid on the shared expert, or null
  const ExpertSlot* slots = nullptr;     // [experts], null: every expert is the CPU's
  std::vector<ExpertSlot> slot_table;    // the same for the host; empty: steps of many rows, too,
                                         // take the way of few
  bool cpu_experts = true;               // some have no slot
  ExpertMatrices slot_experts;     // those with a slot: all three in int4, or none
  ExpertMatrices source_experts;   // those in `sources`: in R16, or rows of floats
  /// Where experts without a slot are in RAM, in R16: [experts], no pieces for those with one.
  /// Empty: they are never streamed.
  std::vector<ExpertSource> sources;
};

}  // namespace kt::cuda
