// Attention operators over a paged cache: grouped-query (GqaAttention) and multi-head latent
// (MlaAttention). Both project, rotate, write the new positions' keys and values, and attend.
#pragma once

#include <memory>
#include <vector>

#include "cpu/ops/kv_layout.h"
#include "cpu/ops/linear.h"

namespace kt::cpu {

/// The pages of one layer for one sequence: 64 positions each, rows of KvSpec's widths.
struct KvPages {
  uint8_t* const* k;
  uint8_t* const* v;  // equal to k where v_width is 0
};

/// What a row of a step is part of. Latent attention may expand keys and values for the rows of a long
/// prompt; the mark is the prompt's, so that a row's result does not depend on how it was cut.
enum class RowKind : uint8_t { kGenerated = 0, kPrompt = 1, kLongPrompt = 2 };

/// Rows of one sequence from which expanding its keys takes less time than absorbing them into each
/// query: 2.3 times less at 512 positions, 1.1 at 2048 and 8192; with half as many rows absorbing is
/// faster everywhere (bench.attention --only mla).
inline constexpr int64_t kLongPrompt = 128;

/// The mark of the rows of a prompt, by how many of them are not in the cache yet.
constexpr RowKind prompt_kind(int64_t new_rows) {
  return new_rows >= kLongPrompt ? RowKind::kLongPrompt : RowKind::kPrompt;
}

/// The rows an attention operator works on.
struct AttentionRows {
  int m;
  const int32_t* position;    // [m] place in its sequence; also the cache slot
  const Rounding* rounding;   // [m]
  const KvPages* kv;          // [m] pages of the row's sequence, already present up to position
  const int32_t* sequence;    // [m] equal numbers: the same sequence
  KvType k_type, v_type;
  const RowKind* kind = nullptr;  // [m]; none: no row is of a long prompt
};

/// The largest rotated part, and the largest head, that the operators make room for.
inline constexpr int kMostRope = 512, kMostHead = 1024;

/// RMSNorm: x / sqrt(mean(x^2) + eps) * weight.
struct RmsNorm {
  std::vector<float> weight;
  float eps = 1e-6f;
};

/// Rotary position embedding (Su et al. 2021) with frequencies given by the caller.
struct Rope {
  std::vector<float> inv_freq;  // [rotary_dim / 2]
  float attention_scaling = 1.0f;  // multiplies cos and sin (YaRN)
  bool interleaved = false;  // pairs (2i, 2i + 1) instead of (i, i + dim / 2)

  int dim() const { return static_cast<int>(inv_freq.size()) * 2; }
  /// cos and sin of one position: [dim / 2] each.
  void angles(int32_t position, float* cos, float* sin) const;
  /// Rotates x[0, dim) in place. Interleaved input comes out in half order, (all first, all second),
  /// as in DeepSeek-V3: scores do not change, since queries and keys are permuted alike.
  void rotate(const float* cos, const float* sin, float* x) const;
};

/// Rows whose attention is computed in floats (the reference arithmetic, and any row of a cache in
/// f32) and those for which it is in int16 (tile_attention.h). The lists live in the arena.
struct ArithmeticSplit {
  int* floats;
  int num_floats;
  int* others;
  int num_others;
};
ArithmeticSplit split_by_arithmetic(Context& context, const AttentionRows& rows);

class Attention {
 public:
  virtual ~Attention() = default;
  /// x, out: [m, hidden].
  virtual void forward(Context& context, const AttentionRows& rows, const float* x,
                       float* out) const = 0;
  virtual KvSpec kv_spec() const = 0;
  /// The matrices it multiplies first, together.
  virtual std::span<const Matrix* const> first_weights() const = 0;
  virtual int64_t hidden_size() const = 0;
};

struct GqaWeights {
  std::shared_ptr<const Linear> q, k, v, o;
  std::shared_ptr<const RmsNorm> q_norm, k_norm;  // per head, or null
  std::shared_ptr<const Rope> rope;
  int num_heads = 0, num_kv_heads = 0, head_dim = 0;
  float scale = 0.0f;  // of the scores
};

class GqaAttention : public Attention {
 public:
  /// Throws InvalidArgument where shapes do not fit.
  explicit GqaAttention(GqaWeights weights);
  void forward(Context& context, const AttentionRows& rows, const float* x,
               float* out) const override;
  KvSpec kv_spec() const override {
    const int64_t width = int64_t{w_.num_kv_heads} * w_.head_dim;
    return {width, width, w_.num_kv_heads};
  }
  std::span<const Matrix* const> first_weights() const override { return first_; }
  int64_t hidden_size() const override { return w_.q->cols(); }

 private:
  void attend_floats(Context& context, const AttentionRows& rows, const int* chosen, int count,
                     const float* q, float* heads) const;

  GqaWeights w_;
  std::vector<const Matrix*> first_, last_;
};

enum class Expand : uint8_t { kLongPrompts, kNever, kAlways };

struct MlaWeights {
  std::shared_ptr<const Linear> q;               // [heads * (nope + rope), hidden], or null and:
  std::shared_ptr<const Linear> q_a, q_b;        // through q_lora_rank
  std::shared_ptr<const RmsNorm> q_a_norm;
  std::shared_ptr<const Linear> kv_a;            // [kv_lora + rope, hidden]
  std::shared_ptr<const RmsNorm> kv_a_norm;      // over kv_lora
  std::shared_ptr<const Linear> kv_b;            // [heads * (nope + v), kv_lora], or null and:
  std::vector<std::shared_ptr<const Matrix>> k_b;  // per head [kv_lora, nope]
  std::vector<std::shared_ptr<const Matrix>> v_b;  // per head [v, kv_lora]
  std::shared_ptr<const Linear> o;               // [hidden, heads * v]
  std::shared_ptr<const Rope> rope;
  int num_heads = 0, kv_lora_rank = 0, qk_nope_head_dim = 0, qk_rope_head_dim = 0, v_head_dim = 0;
  float scale = 0.0f;
  // Whose keys are expanded instead of absorbed. Both forms are right, but not to the last bit.
  Expand expand = Expand::kLongPrompts;
};

/// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1). The cache holds the
/// normalised latent and the shared rotated key. Decode absorbs kv_b into the query and the output
/// (appendix of the paper); long prompts expand keys and values head by head.
class MlaAttention : public Attention {
 public:
  /// Throws InvalidArgument where shapes do not fit.
  explicit MlaAttention(MlaWeights weights);
  void forward(Context& context, const AttentionRows& rows, const float* x,
               float* out) const override;
  KvSpec kv_spec() const override { return {w_.kv_lora_rank + w_.qk_rope_head_dim, 0, 1}; }
  std::span<const Matrix* const> first_weights() const override { return first_; }
  int64_t hidden_size() const override { return w_.kv_a->cols(); }

 private:
  void absorbed(Context& context, const AttentionRows& rows, const int* chosen, int count,
                bool in_floats, const float* q, float* heads_out) const;
  void expanded(Context& context, const AttentionRows& rows, const int* chosen, int count,
                const float* q, float* heads_out) const;
  void expanded_tiles(Context& context, const AttentionRows& rows, const int* chosen, int count,
                      const float* q, float* heads_out) const;
  void key_rows(const KernelTable& kernels, int64_t head, float* out) const;
  void value_rows(const KernelTable& kernels, int64_t head, float* out) const;

  MlaWeights w_;
  std::vector<const Matrix*> first_, widen_, kv_b_, last_;
};

}  // namespace kt::cpu
