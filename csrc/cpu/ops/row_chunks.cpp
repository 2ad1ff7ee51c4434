#include "cpu/ops/row_chunks.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "cpu/isa.h"
#include "quant/r16.h"

namespace kt::cpu {
namespace {

// Chunks a worker should have at least, so that one that is late can be helped.
constexpr int64_t kChunksPerWorker = 4;
// And what a chunk should have at least, beside which handing it out takes no time.
constexpr int64_t kChunkBytes = 128 << 10;
// What a worker fetches of its rows while it waits: a part of a core's L2.
constexpr int64_t kExpectedBytes = 256 << 10;

int64_t groups_of(int64_t rows) { return (rows + 15) / 16; }

// Row groups of a chunk: bands, as many as it takes.
int64_t groups_of_chunk(const Matrix& matrix) {
  const auto bytes = static_cast<int64_t>(matrix.bytes()) / groups_of(matrix.rows());
  const int64_t band = std::max<int64_t>(bytes * quant::kBandGroups, 1);
  return (kChunkBytes + band - 1) / band * quant::kBandGroups;
}

// Where matrices are cut.
class Cut {
 public:
  Cut(const Context& context, std::span<const Matrix* const> matrices)
      : matrices_(matrices), threads_(context.pool.threads()) {
    int64_t total = 0;
    for (const Matrix* matrix : matrices) {
      total += groups_of(matrix->rows());
      slices_ = std::max(slices_, matrix->slices().size());
    }
    // No more than this, so that there are enough: whole bands or whole fractions of one.
    most_groups_ = std::max<int64_t>(total / (threads_ * kChunksPerWorker), 1);
    if (most_groups_ > quant::kBandGroups)
      most_groups_ -= most_groups_ % quant::kBandGroups;
    else
      most_groups_ = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(most_groups_)));
  }

  int64_t unit_of(const Matrix& matrix) const {
    if (threads_ == 1) return std::numeric_limits<int64_t>::max();
    return std::min(groups_of_chunk(matrix), most_groups_);
  }

  // Calls body(matrix, its row groups, unit) for slice after slice, until it returns false.
  template <class Body>
  void for_each_slice(Body&& body) const {
    for (size_t part = 0; part < slices_; ++part) {
      for (size_t m = 0; m < matrices_.size(); ++m) {
        if (part >= matrices_[m]->slices().size()) continue;
        const RowSlice& slice = matrices_[m]->slices()[part];
        const int64_t first = slice.row_begin / 16;
        const Range groups{first, first + groups_of(slice.rows)};
        if (!body(static_cast<int>(m), groups, unit_of(*matrices_[m]))) return;
      }
    }
  }

 private:
  std::span<const Matrix* const> matrices_;
  int threads_;
  size_t slices_ = 0;
  int64_t most_groups_ = 1;
};

int64_t chunks_of(Range groups, int64_t unit) {
  const int64_t count = groups.end - groups.begin;
  return count / unit + (count % unit != 0);
}

}  // namespace

std::span<const RowChunk> row_chunks(Context& context, std::span<const Matrix* const> matrices) {
  const Cut cut(context, matrices);
  int64_t most = 0;
  cut.for_each_slice([&](int, Range groups, int64_t unit) {
    most += chunks_of(groups, unit);
    return true;
  });
  RowChunk* chunks = context.arena.take<RowChunk>(most);
  size_t count = 0;
  cut.for_each_slice([&](int matrix, Range groups, int64_t unit) {
    for (int64_t begin = groups.begin; begin < groups.end;) {
      const int64_t stop = groups.end - begin > unit ? begin + unit : groups.end;
      chunks[count++] = {matrix, {begin, stop}};
      begin = stop;
    }
    return true;
  });
  return {chunks, count};
}

const uint8_t* first_record(const KernelTable& kernels, const Matrix& matrix, int64_t group) {
  for (const RowSlice& slice : matrix.slices()) {
    const int64_t first = slice.row_begin / 16, groups = (slice.rows + 15) / 16;
    if (group < first || group >= first + groups) continue;
    const FormatKernels& format = format_kernels(kernels, matrix.gguf_id());
    const int64_t blocks = matrix.cols() / format.values;
    return slice.data + quant::r16_record(groups, blocks, group - first, 0,
                                          quant::kPanelValues / format.values) *
                            format.record_bytes;
  }
  return nullptr;
}

std::span<const ExpectedRows> expected_rows(Context& context,
                                            std::span<const Matrix* const> matrices) {
  const int members = context.pool.active();
  ExpectedRows* expected = context.arena.take<ExpectedRows>(members);
  std::fill_n(expected, members, ExpectedRows{nullptr, 0});
  const Cut cut(context, matrices);
  int64_t total = 0;
  cut.for_each_slice([&](int, Range groups, int64_t unit) {
    total += chunks_of(groups, unit);
    return true;
  });
  // As the pool deals out indices: each worker a run of as many.
  int worker = 0;
  int64_t before = 0;
  cut.for_each_slice([&](int index, Range groups, int64_t unit) {
    const Matrix& matrix = *matrices[index];
    const int64_t count = chunks_of(groups, unit);
    for (; worker < members; ++worker) {
      const int64_t first = total * worker / members, end = total * (worker + 1) / members;
      if (first >= before + count) break;
      const int64_t group = groups.begin + (first - before) * unit;
      const int64_t last = end - before < count ? groups.begin + (end - before) * unit : groups.end;
      const auto bytes = static_cast<int64_t>(matrix.bytes()) / groups_of(matrix.rows());
      if (end > first)
        expected[worker] = {first_record(context.kernels, matrix, group),
                            std::min((last - group) * bytes, kExpectedBytes)};
    }
    before += count;
    return worker < members;
  });
  return {expected, static_cast<size_t>(members)};
}

void expect_rows(Context& context, std::span<const Matrix* const> matrices) {
  if (context.pool.threads() == 1) return;
  Arena::Scope scope(context.arena);
  int worker = 0;
  for (const ExpectedRows& rows : expected_rows(context, matrices))
    context.pool.expect(worker++, rows.data, rows.bytes);
}

}  // namespace kt::cpu
