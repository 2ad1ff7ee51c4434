// Prepared activations, and y = x W^T + b.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cpu/ops/context.h"
#include "cpu/ops/matrix.h"

namespace kt::cpu {

/// m rows of k activations: the floats, and their rounded form where the row's rounding asks for
/// one. Lives in the context's arena.
class Activations {
 public:
  /// x: [m, k] float, `stride` floats apart. `rounding[row]` for each row. The rounded form is made
  /// unless `floats_only`.
  Activations(Context& context, const float* x, int64_t stride, int m, int64_t k,
              const Rounding* rounding, bool floats_only = false);

  /// gate = silu(gate) * up, both [m, k], and then as above, in one job.
  Activations(Context& context, float* gate, const float* up, int m, int64_t k,
              const Rounding* rounding);

  int rows() const { return m_; }
  int64_t cols() const { return k_; }
  Rounding rounding(int row) const { return rounding_[row]; }
  const float* floats(int row) const { return x_ + row * stride_; }
  const uint8_t* ints(int row) const { return ints_ + static_cast<size_t>(row) * act_row_bytes(k_); }
  bool has_ints() const { return ints_ != nullptr; }

 private:
  void round(const KernelTable& kernels, int64_t row, Range columns) const;

  const float* x_;
  int64_t stride_;
  int m_;
  int64_t k_;
  const Rounding* rounding_;
  uint8_t* ints_ = nullptr;
};

/// A low-rank addend (adapter): y += scale * B (A x), A: [rank, k], B: [n, rank], row-major float.
struct LowRank {
  std::vector<float> a, b;
  int rank = 0;
  float scale = 1.0f;
};

/// y = x W^T + bias (+ adapter).
class Linear {
 public:
  /// `bias` is empty or has one value per row; throws InvalidArgument otherwise.
  Linear(std::shared_ptr<const Matrix> weight, std::vector<float> bias);

  const Matrix& weight() const { return *weight_; }
  int64_t rows() const { return weight_->rows(); }
  int64_t cols() const { return weight_->cols(); }
  std::span<const float> bias() const { return bias_; }
  void set_adapter(std::shared_ptr<const LowRank> adapter);
  const LowRank* adapter() const { return adapter_.get(); }

 private:
  std::shared_ptr<const Matrix> weight_;
  std::vector<float> bias_;
  std::shared_ptr<const LowRank> adapter_;
};

/// One product of a joint job: y[row][n] for every row of x, rows `y_stride` floats apart.
struct LinearCall {
  const Linear* linear;
  const Activations* x;
  float* y;
  int64_t y_stride;
};

/// Runs independent products as one job of the pool (q, k and v; gate and up). next: matrices that
/// the same rows meet next, or none.
void run_linears(Context& context, std::span<const LinearCall> calls,
                 std::span<const Matrix* const> next = {});

/// What a worker probably multiplies next: rows of a matrix, from a row group on.
struct NextRows {
  const Matrix* matrix = nullptr;
  int64_t group = 0;
};

/// Rows of a group range of one matrix for a list of tokens, on the calling worker: the inner step
/// of run_linears and of the expert operator. `tokens[i]` indexes x; y[i] receives rows
/// [group_begin * 16, ...) of token i. Uses `scratch` (num_tokens pointers, twice). The last
/// products fetch the beginning of `next`.
void matmul_rows(const KernelTable& kernels, const Matrix& weight, const Activations& x,
                 const int* tokens, int num_tokens, Range groups, float* const* y, void** scratch,
                 NextRows next = {});

}  // namespace kt::cpu
