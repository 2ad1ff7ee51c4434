// What stands between the large products of a layer: norms, rotary embedding and cache writes, the
// activation, products with float weights, sampling.
//
// The residual stream and the products' results are float; what the products read is rounded once,
// to the form they want.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "cuda/api_step.h"
#include "cuda/common/types.h"
#include "cuda/quant_gemv/quant_gemv.h"

namespace kt::cuda {

/// 16-bit forms a result can be written in.
enum class Out16 : uint8_t { kF16, kBf16 };

/// x = hidden + delta (written back where delta is given); out = x / sqrt(mean(x^2) + eps) *
/// weight.
struct NormParams {
  float* hidden;        // [m, k]
  const float* delta;   // [m, k] or null
  const float* weight;  // [k]
  float* out_float;     // [m, k], or null
  void* out_16;         // [m, k], or null
  int m, k;
  float eps;
  Out16 type;
  Stream stream;
};
void launch_rms_norm(const NormParams& params);

/// silu(gate) * up, rounded to 16 bits. (launch_prepare does the same for its own form.)
struct SwigluParams {
  const float* gate;  // [m, n]
  const float* up;    // [m, n]
  void* out;          // [m, n]
  int64_t count;      // m n, even
  Out16 type;
  Stream stream;
};
void launch_swiglu(const SwigluParams& params);

/// Rows of one kind (queries, keys, values, MLA's latents): norm of the first values, rotation of a
/// part, and the way to where attention reads them.
struct RotateParams {
  const float* x;       // [tokens, heads, stride]; a row's `dim` values are at its begin
  const float* second;  // the rotated part of a row lies here, [tokens, heads, second_stride];
  int64_t stride, second_stride;  // null: in x
  const float* bias;              // [heads, dim], added to x first, or null; without `second`
  const float* norm_weight;       // [norm_dim], or null
  const float* inv_freq;          // [rope_dim / 2]
  const int32_t* position;        // [tokens]
  void* out;                      // [tokens, heads, dim], or the cache: [pages, 64, heads, dim]
  const int32_t* pages;           // [sequences, max_pages], null: out is no cache
  const int32_t* sequence;        // [tokens]
  int tokens, heads, dim;         // dim counts the rotated part
  int norm_dim;
  float eps;
  int rope_begin, rope_dim;  // rope_dim 0: nothing is rotated
  float attention_scaling;   // of cos and sin
  bool interleaved;          // pairs (2 i, 2 i + 1) in, halves out, as on the CPU
  // Not null: out holds E4M3, a row's values times 2^(127 - exponent); as out without `dim`. The
  // exponent is the least with which the row's largest value fits.
  uint8_t* exponents;
  int max_pages;
  Out16 type;
  Stream stream;
};
void launch_rotate(const RotateParams& params);

/// y = x W^T with float, f16 or bf16 weights and float sums: routers and small tensors.
struct DenseGemvParams {
  const float* x;       // [m, k]
  const void* weights;  // [n, k] of `type`: 0 float, 1 f16, 2 bf16
  float* y;             // [m, n]
  int m, n, k;          // k a multiple of 8
  uint8_t type;
  Stream stream;
};
void launch_dense_gemv(const DenseGemvParams& params);

/// y[t][h] = W[h] x[t][h] for every head h: MLA's way into the latent space and out of it.
struct HeadProductParams {
  const void* x;        // rows of k values: token t, head h at x + t token_stride + h head_stride
  const void* weights;  // [heads, n, k] f16
  float* y;             // [m, heads, n]
  int64_t token_stride, head_stride;
  int m, heads, n, k;  // k a multiple of 2, and so are the strides
  bool x_is_f16;       // else float
  Stream stream;
};
void launch_head_product(const HeadProductParams& params);

/// Up to six pieces of memory from one place to another in one launch: the way between the card and
/// mapped host memory, where a copy node each would cost more than the bytes.
struct CopyParams {
  static constexpr int kMost = 6;
  struct Piece {
    const void* from;
    void* to;
    int64_t bytes;  // a multiple of 4
  } pieces[kMost];
  int count;
  Stream stream;
};
void launch_copy(const CopyParams& params);

/// Throws InvalidArgument for values out of range.
void check_sampling(const kt_cuda_sampling& how);

/// What has passed check_sampling; the kernel does not look again.
struct CheckedSampling : kt_cuda_sampling {
  explicit CheckedSampling(const kt_cuda_sampling& how) : kt_cuda_sampling(how) {
    check_sampling(how);
  }
};

/// The next token of every row, the one that the CPU's Sampler (csrc/program/sampling.h) chooses
/// from the same logits with the same random number, but for draws within 1e-6 of a step.
struct SampleParams {
  const float* logits;         // [rows, vocab]
  const CheckedSampling* how;  // [rows], memory of the card or mapped
  int32_t* token;              // [rows], the same; -1: every logit is NaN
  int rows, vocab;
  Stream stream;
};
void launch_sample(const SampleParams& params);

}  // namespace kt::cuda
