#include "cpu/ops/matrix.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/checked.h"
#include "base/checksum.h"
#include "base/error.h"
#include "base/os_file.h"
#include "quant/formats.h"
#include "quant/r16.h"

namespace kt::cpu {
namespace {

// Source bytes of one piece of work: long runs for disk and memory, short enough to even out.
constexpr int64_t kPieceBytes = 2 << 20;
// How far ahead of the workers a file is read: what a fast disk does in the time of a few pieces.
constexpr size_t kReadAhead = size_t{64} << 20;

struct Layout {
  int64_t blocks_per_row;
  size_t block_bytes, group_bytes;  // a group: 16 rows in R16, the same bytes as in the file
  bool quantised;
};

Layout layout_of(int gguf_id, int64_t cols, const std::string& name) {
  Layout layout{};
  quant::visit_format(gguf_id, [&]<class F>() {
    KT_CHECK(cols % F::kValues == 0, name, ": ", cols, " columns are no multiple of ", F::kName,
             "'s block of ", F::kValues);
    layout.blocks_per_row = cols / F::kValues;
    layout.block_bytes = sizeof(typename F::Block);
    layout.group_bytes = checked_mul(layout.blocks_per_row, quant::R16<F>::kRecordBytes, "matrix");
    layout.quantised = F::kGroup != 0;
  });
  return layout;
}

// Piece `index` of `pieces` of row groups, cut between bands: a band's bytes are one run.
Range bands_piece(int64_t groups, int64_t pieces, int64_t index) {
  constexpr int64_t kBand = quant::kBandGroups;
  const Range bands = piece((groups + kBand - 1) / kBand, pieces, index);
  return {bands.begin * kBand, std::min(bands.end * kBand, groups)};
}

// Row groups [begin, end) of one matrix, whole bands: file blocks -> records.
void repack_groups(int gguf_id, const Layout& layout, const uint8_t* blocks, int64_t rows,
                   Range groups, uint8_t* out) {
  quant::visit_format(gguf_id, [&]<class F>() {
    const size_t row_bytes = static_cast<size_t>(layout.blocks_per_row) * sizeof(typename F::Block);
    const int64_t count = groups.end - groups.begin;
    for (int64_t group = groups.begin; group < groups.end; ++group) {
      const int present = static_cast<int>(std::min<int64_t>(16, rows - group * 16));
      for (int row = 0; row < present; ++row) {
        const uint8_t* in = blocks + (group * 16 + row) * row_bytes;
        for (int64_t b = 0; b < layout.blocks_per_row; ++b) {
          typename F::Block block;
          std::memcpy(&block, in + b * sizeof block, sizeof block);
          const int64_t record =
              quant::r16_record<F>(count, layout.blocks_per_row, group - groups.begin, b);
          quant::r16_put<F>(block, row, out + record * quant::R16<F>::kRecordBytes);
        }
      }
    }
  });
}

// One piece of work: groups of one matrix of the stack, all in one slice.
struct Piece {
  int64_t matrix;
  Range groups;
  uint8_t* out;
};

// The stack cut into pieces, those of each node in the order of the file.
std::vector<std::vector<Piece>> cut(const Matrix::Stack& stack, const Layout& layout, int nodes) {
  const auto band_bytes = static_cast<int64_t>(layout.group_bytes) * quant::kBandGroups;
  std::vector<std::vector<Piece>> pieces(nodes);
  for (size_t m = 0; m < stack.size(); ++m) {
    for (size_t s = 0; s < stack[m]->slices().size(); ++s) {
      const RowSlice& slice = stack[m]->slices()[s];
      const int64_t first = slice.row_begin / 16, count = (slice.rows + 15) / 16;
      const int64_t bands = (count + quant::kBandGroups - 1) / quant::kBandGroups;
      const int64_t parts = std::clamp<int64_t>(bands * band_bytes / kPieceBytes, 1, bands);
      for (int64_t i = 0; i < parts; ++i) {
        const Range range = bands_piece(count, parts, i);
        // The slices are ours until the stack is handed out.
        uint8_t* out = const_cast<uint8_t*>(slice.data) + range.begin * layout.group_bytes;
        pieces[s % nodes].push_back(
            {static_cast<int64_t>(m), {first + range.begin, first + range.end}, out});
      }
    }
  }
  return pieces;
}

// Runs fill(piece, bytes of it in `source`) for all pieces, each by a worker of its node, and lets
// the pages of a mapped source come in time and go behind.
template <class Fill>
void run_pieces(Context& context, const std::vector<std::vector<Piece>>& pieces,
                std::span<const uint8_t> source, int64_t rows, size_t row_bytes, Fill&& fill) {
  const size_t matrix_bytes = static_cast<size_t>(rows) * row_bytes;
  std::vector<int64_t> counts;
  for (const auto& own : pieces) counts.push_back(static_cast<int64_t>(own.size()));
  os::prefetch_pages(source.data(), kReadAhead);
  context.pool.run_by_node(counts, [&](int node, int64_t index, int) {
    const Piece& one = pieces[node][index];
    const size_t begin = one.matrix * matrix_bytes + one.groups.begin * 16 * row_bytes;
    const size_t end =
        one.matrix * matrix_bytes + std::min(one.groups.end * 16, rows) * row_bytes;
    // Past the end of the source too: what follows in the file is wanted next.
    os::prefetch_pages(source.data() + begin + kReadAhead, end - begin);
    fill(one, source.subspan(begin, end - begin));
    os::release_pages(source.subspan(begin, end - begin));
  });
}

}  // namespace

size_t Matrix::record_bytes(int gguf_id, int64_t rows, int64_t cols) {
  return checked_mul((rows + 15) / 16, layout_of(gguf_id, cols, "matrix").group_bytes, "matrix");
}

size_t Matrix::slice_bytes(const RowSlice& slice) const {
  return bytes_ / ((rows_ + 15) / 16) * ((slice.rows + 15) / 16);
}

Matrix::Stack Matrix::shaped(Context& context, const StackShape& shape,
                             std::shared_ptr<const void> keep, const uint8_t* records) {
  KT_CHECK(shape.count > 0 && shape.rows > 0 && shape.cols > 0, shape.name, ": shape ",
           shape.count, " x ", shape.rows, " x ", shape.cols, " must be positive");
  const Layout layout = layout_of(shape.gguf_id, shape.cols, shape.name);
  const int64_t groups = (shape.rows + 15) / 16;
  const size_t bytes = checked_mul(groups, layout.group_bytes, "matrix");
  // In place there is one copy wherever it lies; otherwise each node holds its part.
  const std::span<const int> nodes = context.pool.nodes();
  const int64_t bands = (groups + quant::kBandGroups - 1) / quant::kBandGroups;
  const int64_t parts = records ? 1 : std::min<int64_t>(static_cast<int64_t>(nodes.size()), bands);
  Stack stack;
  for (int64_t m = 0; m < shape.count; ++m) {
    auto matrix = std::make_shared<Matrix>();
    matrix->gguf_id_ = shape.gguf_id;
    matrix->rows_ = shape.rows;
    matrix->cols_ = shape.cols;
    matrix->quantised_ = layout.quantised;
    matrix->bytes_ = bytes;
    matrix->name_ = shape.count == 1 ? shape.name : concat(shape.name, '[', m, ']');
    for (int64_t part = 0; part < parts; ++part) {
      const Range range = bands_piece(groups, parts, part);
      const int64_t end = std::min(range.end * 16, shape.rows);
      const uint8_t* data = records ? records + m * bytes : nullptr;
      if (records) {
        matrix->keep_.push_back(keep);
      } else {
        const auto place = context.weights.take((range.end - range.begin) * layout.group_bytes,
                                                nodes.size() == 1 ? -1 : nodes[part]);
        matrix->keep_.push_back(place.region);
        data = place.data;
      }
      matrix->slices_.push_back({nodes[part], range.begin * 16, end - range.begin * 16, data});
    }
    stack.push_back(std::move(matrix));
  }
  return stack;
}

std::shared_ptr<const Matrix> Matrix::repack(Context& context, std::span<const uint8_t> blocks,
                                             int gguf_id, int64_t rows, int64_t cols,
                                             const std::string& name) {
  return repack_stack(context, blocks, {gguf_id, 1, rows, cols, name})[0];
}

Matrix::Stack Matrix::repack_stack(Context& context, std::span<const uint8_t> blocks,
                                   const StackShape& shape) {
  KT_CHECK(shape.count > 0 && shape.rows > 0 && shape.cols > 0, shape.name, ": shape ",
           shape.count, " x ", shape.rows, " x ", shape.cols, " must be positive");
  const Layout layout = layout_of(shape.gguf_id, shape.cols, shape.name);
  const size_t row_bytes = checked_mul(layout.blocks_per_row, layout.block_bytes, "matrix");
  const uint64_t expected =
      checked_mul(checked_mul(shape.count, shape.rows, "matrix"), row_bytes, "matrix");
  KT_CHECK(blocks.size() == expected, shape.name, ": ", blocks.size(), " bytes, ", shape.rows, " x ",
           shape.cols, " of ", quant::find_format(shape.gguf_id)->name, " need ", expected);
  Stack stack = shaped(context, shape, nullptr, nullptr);
  const size_t matrix_bytes = static_cast<size_t>(shape.rows) * row_bytes;
  const auto pieces = cut(stack, layout, static_cast<int>(context.pool.nodes().size()));
  run_pieces(context, pieces, blocks, shape.rows, row_bytes,
             [&](const Piece& one, std::span<const uint8_t>) {
               repack_groups(shape.gguf_id, layout, blocks.data() + one.matrix * matrix_bytes,
                             shape.rows, one.groups, one.out);
             });
  return stack;
}

Matrix::Stack Matrix::from_records(Context& context, std::span<const uint8_t> records,
                                   const StackShape& shape, std::shared_ptr<const void> keep) {
  const size_t bytes = record_bytes(shape.gguf_id, shape.rows, shape.cols);
  KT_CHECK(records.size() == checked_mul(shape.count, bytes, "matrix"), shape.name, ": ",
           records.size(), " bytes of records, ", shape.count, " x ", shape.rows, " x ", shape.cols,
           " need ", shape.count * bytes);
  if (keep) return shaped(context, shape, std::move(keep), records.data());
  const Layout layout = layout_of(shape.gguf_id, shape.cols, shape.name);
  Stack stack = shaped(context, shape, nullptr, nullptr);
  const auto pieces = cut(stack, layout, static_cast<int>(context.pool.nodes().size()));
  // Records come in whole groups: as rows they are 16 / 16 of a group's bytes each.
  const int64_t rows = (shape.rows + 15) / 16 * 16;
  run_pieces(context, pieces, records, rows, layout.group_bytes / 16,
             [](const Piece& one, std::span<const uint8_t> source) {
               std::memcpy(one.out, source.data(), source.size());
             });
  return stack;
}

uint64_t checksum_in_parallel(Context& context, std::span<const uint8_t> bytes, uint64_t place) {
  const auto size = static_cast<int64_t>(bytes.size());
  const int64_t pieces = std::max<int64_t>(1, size / kPieceBytes);
  Arena::Scope scope(context.arena);
  uint64_t* sums = context.arena.take<uint64_t>(pieces);
  context.pool.run(pieces, [&](int64_t index, int) {
    const Range words = piece((size + 7) / 8, pieces, index);
    const int64_t begin = words.begin * 8, end = std::min(words.end * 8, size);
    sums[index] = checksum(bytes.data() + begin, static_cast<size_t>(end - begin),
                           place + static_cast<uint64_t>(words.begin));
  });
  return std::accumulate(sums, sums + pieces, uint64_t{0});
}

}  // namespace kt::cpu
