// Weight matrices in R16, as the kernels read them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cpu/ops/context.h"

namespace kt::cpu {

/// Rows [row_begin, row_begin + rows) of a matrix in R16, on one NUMA node. Slices are cut
/// between bands of R16, so row_begin is a multiple of 128, and so is rows but in the last slice.
struct RowSlice {
  int node;
  int64_t row_begin;
  int64_t rows;
  const uint8_t* data;
};

/// What a run of matrices is: `count` of [rows, cols] one after another (the experts of a layer).
struct StackShape {
  int gguf_id = 0;
  int64_t count = 1, rows = 0, cols = 0;
  std::string name;  // a stack's matrices are called name[0], name[1], ...
};

/// A weight matrix [rows, cols] of one format, held as row slices: one per node that workers are
/// on, of equal numbers of row groups.
class Matrix {
 public:
  using Stack = std::vector<std::shared_ptr<const Matrix>>;

  /// Repacks the file's blocks, [rows, cols] in row order, into R16. Throws InvalidArgument where
  /// the byte count or the column count does not fit the format, naming the tensor.
  static std::shared_ptr<const Matrix> repack(Context& context, std::span<const uint8_t> blocks,
                                              int gguf_id, int64_t rows, int64_t cols,
                                              const std::string& name);

  /// The same for a whole stack, [count, rows, cols]: one job of the pool. Where `blocks` lies in a
  /// file map, its pages are read ahead of the workers and given up behind them. The memory is
  /// written first by workers of the node that will read it.
  static Stack repack_stack(Context& context, std::span<const uint8_t> blocks,
                            const StackShape& shape);

  /// Matrices from records that were written before: what data_of() gives, matrix by matrix.
  /// `keep` null: they are copied into weight memory; otherwise they stay where they are, and keep
  /// holds the place. Throws InvalidArgument for a byte count that does not fit.
  static Stack from_records(Context& context, std::span<const uint8_t> records,
                            const StackShape& shape, std::shared_ptr<const void> keep);

  /// Bytes of one matrix in R16: whole row groups of 16. Throws InvalidArgument where cols does not
  /// fit the format.
  static size_t record_bytes(int gguf_id, int64_t rows, int64_t cols);

  int gguf_id() const { return gguf_id_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  size_t bytes() const { return bytes_; }
  const std::string& name() const { return name_; }
  std::span<const RowSlice> slices() const { return slices_; }
  /// Bytes of a slice's records.
  size_t slice_bytes(const RowSlice& slice) const;
  /// Whether products with it use rounded activations (false for F32, F16, BF16 weights).
  bool quantised() const { return quantised_; }

 private:
  static Stack shaped(Context& context, const StackShape& shape, std::shared_ptr<const void> keep,
                      const uint8_t* records);

  int gguf_id_ = 0;
  int64_t rows_ = 0, cols_ = 0;
  bool quantised_ = false;
  size_t bytes_ = 0;
  std::string name_;
  std::vector<std::shared_ptr<const void>> keep_;
  std::vector<RowSlice> slices_;
};

/// base/checksum.h by all workers.
uint64_t checksum_in_parallel(Context& context, std::span<const uint8_t> bytes, uint64_t place);

}  // namespace kt::cpu
