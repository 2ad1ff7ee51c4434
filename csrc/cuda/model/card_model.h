// A run of decoder layers on one card: what the operations of a step launch. Attention is latent
// (DeepSeek-V2/V3) or grouped-query; the feed-forward part dense, routed, or the CPU's. The order
// of the operations and the way to the CPU's experts is step.h's; this file's part is their bodies.
// Weights keep the file's bytes in R16; sums and the residual stream are float.
//
// A step is any mix of prompt chunks and generated tokens: rows of several sequences, a sequence's
// rows one after another. Embeddings come from the host (a row is read per token, the table stays
// in RAM), and so do positions and block tables: begin_step() writes them to mapped memory, the
// first operation copies them. Every pointer is fixed at construction and every launch depends on
// the step's StepSize only, so that a captured step can be replayed.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cuda/api_step.h"
#include "cuda/attention/flash.h"
#include "cuda/graph/step.h"
#include "cuda/layer/layer.h"
#include "cuda/model/card_experts.h"
#include "cuda/model/card_jobs.h"
#include "cuda/model/card_products.h"
#include "cuda/model/card_shape.h"
#include "cuda/model/dense.h"
#include "cuda/model/memory.h"
#include "cuda/model/step_input.h"
#include "cuda/model/step_size.h"
#include "cuda/moe/moe.h"
#include "cuda/quant_gemv/quant_gemv.h"

namespace kt::cuda {

/// What a model takes of a card's room beside what no step can do without.
struct RoomPlan {
  size_t dense_values = 0;  // of weights dequantised at a time; 0: none
  int stream_slots = 0;     // of half a ring for experts; 0: no ring
  int rows = 0;             // of a step
  size_t bytes = 0;         // of all three
};

class CardModel {
 public:
  /// How much of the memory's room a model takes at once: what it can use, or only what no step can
  /// do without, for others are to have their part (take_room).
  enum class Room : uint8_t { kAll, kLater };

  /// Decode steps of more rows are no graphs, and do not defer.
  static constexpr int kMostGraphRows = 16;

  /// final_norm: float on the card, with head; inv_freq on the card. Throws InvalidArgument for
  /// shapes the kernels do not take, and what Memory throws.
  CardModel(const CardShape& shape, std::vector<CardLayer> layers, const float* final_norm,
            CudaMatrix head, const float* inv_freq, Memory& memory, Room room = Room::kAll);

  /// What take_room() would take of so many bytes: never less than the rows of a slice.
  static constexpr size_t kAnyRoom = SIZE_MAX / 2;
  RoomPlan plan_room(size_t bytes) const;
  /// Once, before the first step. pin_bytes: of what is streamed, at most. Throws what Memory
  /// throws.
  void take_room(size_t bytes, size_t pin_bytes = SIZE_MAX);
  bool has_room() const { return hidden_ != nullptr; }
  /// Of the experts that are streamed, what could be pinned.
  Pins::Report pinned() const { return experts_->pinned(); }
  const CardShape& shape() const { return s_; }
  /// Layers as record_step wants them.
  std::vector<StepLayer> step_layers(const StepSize& size) const;
  /// Whether experts can be streamed: there is a ring, and a layer with sources. Steps of more rows
  /// than a slice must.
  bool can_stream() const;
  /// Issues one operation's kernels; captured or run at once. Experts of many rows wait for the
  /// card on the host in between: such a step cannot be captured. Throws CudaError.
  void launch(Stream stream, StepOp op, int layer, const StepSize& size);

  /// Host side of a step, before its launch. padded: rows of a captured step to fill up to, at
  /// least step.rows; its other rows write to a page of their own. Throws InvalidArgument for what
  /// does not fit.
  /// first_row: of this step within another, for its jobs.
  StepSize begin_step(const kt_cuda_step& step, int padded = 0, int first_row = 0);
  /// The same for one token of each of shape().rows sequences, all with logits.
  StepSize begin_step(const float* embeddings, const int32_t* positions,
                      const std::vector<std::vector<int32_t>>& pages);
  /// The step that was begun gives tokens: how[i] of its i-th row with logits.
  void sample_next(const std::vector<kt_cuda_sampling>& how, StepSize& size);
  /// After the step: [head_rows, vocab], and the rows behind the last layer; mapped memory.
  const float* logits() const { return host_logits_; }
  /// [head_rows] where tokens are wanted instead.
  const int32_t* tokens() const { return host_tokens_; }
  const float* hidden() const { return input_->hidden(); }
  /// What the job of the layer under way reads and writes; one job is under way at a time. The ids
  /// are not null in a step with layers of both kinds: a job of Ffn::kCpu ignores them.
  const kt_cuda_job& host_job() const { return jobs_->whole(); }
  /// The same of a job by its number, from 0: of n layers with work for the CPU those below n are
  /// their jobs, in order; n and more their deferred experts, which come from the job's own.
  const kt_cuda_job& host_job(int job) { return jobs_->job(job); }
  /// Gives a page's content to another, in every layer.
  void copy_page(int from, int to);
  /// Bytes of weights and cache a step of one row per sequence reads at a context of `length`.
  int64_t step_bytes(int length) const;

 private:
  /// Activations on their way into a product; side and main stream have one each.
  struct Scratch {
    Prepared prepared;
    float* wide;  // [8 tiles, widest result]
    // For int4: f16 rows, [rows, deepest], and what they were divided by. The memory of `prepared`
    // where no product has matrices of both kinds.
    half_t* rows;
    float* row_scales;
    float* int4_workspace;
    int32_t* int4_counters;
  };
  struct Layer {
    CardLayer w;
    Product qkv, q_b, o, gate_up, down;
    // [pages + 1, 64, kv_heads, ...] as FlashParams has them; latent: values is null.
    uint8_t *keys = nullptr, *values = nullptr, *rope = nullptr;
    uint8_t *key_exponents = nullptr, *value_exponents = nullptr;
    /// The same as bytes of a page each, for who copies or counts them.
    struct CachePart {
      uint8_t* at;
      size_t page_bytes;
    };
    std::vector<CachePart> cache = {};
    ExpertRounds rounds = {};
  };
  Product product(std::vector<CudaMatrix> parts);
  void check_layer(const CardLayer& layer) const;
  void take_cache(Layer& layer);
  std::unique_ptr<CardJobs> make_jobs(Memory& memory) const;
  size_t plan_dense(size_t room) const;
  int plan_ring(size_t room) const;
  size_t ring_bytes(int slots) const;
  size_t expert_room() const;
  bool can_be_long(const RoomPlan& plan) const;
  size_t rows_bytes(int rows) const;
  void take_rows(Memory& memory);
  /// A slice's rows of an array with `width` values each.
  template <class T>
  T* rows_of(T* array, const StepSize& slice, int width) const {
    return array + int64_t{slice.first_row} * width;
  }
  void multiply(Stream stream, const Scratch& scratch, const Product& product,
                const StepSize& size, float* y) const;
  /// With the kernels of few rows.
  void multiply(Stream stream, const Scratch& scratch, const Product& product, int rows,
                float* y) const;
  void take_int4(Memory& memory, int deepest);
  /// Of one matrix with m rows, to float.
  void multiply_int4(Stream stream, const Scratch& scratch, const CudaMatrix& matrix,
                     const half_t* x, const float* row_scales, int m, float* y) const;
  /// x as `next` reads it.
  void prepare(Stream stream, const Scratch& scratch, const Product& next, const void* x, int type,
               int64_t stride, const StepSize& size, const void* up = nullptr) const;
  /// delta: of the whole step.
  void norm(Stream stream, const float* weight, const float* delta, const StepSize& size) const;
  RotateParams rotation(Stream stream, const StepSize& size) const;
  void attention(Stream stream, int layer, const StepSize& size) const;
  void latent_attention(Stream stream, const Layer& layer, const StepSize& size) const;
  /// Whether latent attention's products per head are dense ones.
  bool multiplies_heads_dense(const StepSize& size) const;
  /// Queries into the latent space, per head: absorbed_ from q.
  void heads_on_tensor_cores(Stream stream, const Layer& layer, const StepSize& size,
                             const Result& q) const;
  void grouped_attention(Stream stream, const Layer& layer, const StepSize& size) const;
  void attend(Stream stream, const Layer& layer, const StepSize& size) const;
  void feed_forward(Stream stream, const Scratch& scratch, const Layer& layer,
                    const StepSize& size, float* out) const;
  void router(Stream stream, const Layer& layer, const StepSize& size) const;
  /// What a routed layer's sum has beside its experts on the card.
  CardExperts::Addends addends(int index, const StepSize& size) const;
  void head(Stream stream, const StepSize& size) const;
  FlashParams flash_shape(const StepSize& size) const;
  FlashTile flash_tile(const FlashParams& params) const;

  CardShape s_;
  Memory& memory_;
  int head_rows_;  // of a step, at most
  int widest_;     // rows of a product, at most: a slice's or those of the head
  std::vector<Layer> layers_;
  const float *final_norm_, *inv_freq_;
  Product head_;
  Scratch main_, side_;
  DenseRoom dense_;
  std::unique_ptr<CardJobs> jobs_;
  std::unique_ptr<CardExperts> experts_;
  std::unique_ptr<StepInput> input_;  // with the room
  // On the card; shapes in the constructor.
  float *hidden_ = nullptr, *delta_, *normed_, *absorbed_, *mixed_, *shared_, *cpu_;
  float *router_logits_, *shared_weight_, *weights_, *logits_, *flash_partial_ = nullptr;
  size_t flash_bytes_ = 0;
  half_t *low_, *queries_, *attended_;
  int32_t* ids_;
  float* host_logits_ = nullptr;
  CheckedSampling* host_sampling_ = nullptr;
  int32_t* host_tokens_ = nullptr;
};

}  // namespace kt::cuda
