#include "cpu/ops/linear.h"

#include <algorithm>

#include "base/error.h"
#include "cpu/isa.h"
#include "cpu/ops/row_chunks.h"
#include "quant/r16.h"

namespace kt::cpu {

namespace {

bool all_floats(const Rounding* rounding, int m) {
  return std::all_of(rounding, rounding + m, [](Rounding r) { return r == Rounding::kFloat; });
}

}  // namespace

Activations::Activations(Context& context, const float* x, int64_t stride, int m, int64_t k,
                         const Rounding* rounding, bool floats_only)
    : x_(x), stride_(stride), m_(m), k_(k), rounding_(rounding) {
  if (floats_only || all_floats(rounding, m)) return;
  ints_ = context.arena.take<uint8_t>(static_cast<size_t>(m) * act_row_bytes(k));
  const auto whole_row = [&](int64_t row, int) { round(context.kernels, row, {0, k_}); };
  if (m >= 4) {
    context.pool.run(m, whole_row);
  } else {  // not worth a hand-off
    for (int row = 0; row < m; ++row) whole_row(row, 0);
  }
}

Activations::Activations(Context& context, float* gate, const float* up, int m, int64_t k,
                         const Rounding* rounding)
    : x_(gate), stride_(k), m_(m), k_(k), rounding_(rounding) {
  if (!all_floats(rounding, m))
    ints_ = context.arena.take<uint8_t>(static_cast<size_t>(m) * act_row_bytes(k));
  constexpr int64_t kColumns = 1024;  // whole blocks of either rounding
  const int64_t parts = (k + kColumns - 1) / kColumns;
  context.pool.run(m * parts, [&](int64_t index, int) {
    const int64_t row = index / parts, begin = index % parts * kColumns;
    const Range columns{begin, std::min(begin + kColumns, k_)};
    float* out = gate + row * k_ + begin;
    context.kernels.swiglu(out, up + row * k_ + begin, columns.end - begin, out);
    if (ints_) round(context.kernels, row, columns);
  });
}

// columns.begin: a multiple of 256.
void Activations::round(const KernelTable& kernels, int64_t row, Range columns) const {
  const float* x = x_ + row * stride_ + columns.begin;
  uint8_t* out = ints_ + static_cast<size_t>(row) * act_row_bytes(k_);
  if (rounding_[row] == Rounding::kExact)
    kernels.quantize_exact(x, columns.begin, columns.end, out);
  if (rounding_[row] == Rounding::kDigit)
    kernels.quantize_digit(x, columns.begin, columns.end, k_, out);
}

Linear::Linear(std::shared_ptr<const Matrix> weight, std::vector<float> bias)
    : weight_(std::move(weight)), bias_(std::move(bias)) {
  KT_CHECK(bias_.empty() || static_cast<int64_t>(bias_.size()) == weight_->rows(), weight_->name(),
           ": bias of ", bias_.size(), " values for ", weight_->rows(), " rows");
}

void Linear::set_adapter(std::shared_ptr<const LowRank> adapter) {
  if (adapter) {
    const auto rank = static_cast<size_t>(adapter->rank);
    KT_CHECK(adapter->rank > 0 && adapter->a.size() == rank * static_cast<size_t>(cols()) &&
                 adapter->b.size() == rank * static_cast<size_t>(rows()),
             weight_->name(), ": adapter of rank ", adapter->rank, " has ", adapter->a.size(),
             " and ", adapter->b.size(), " values, the weight is ", rows(), " x ", cols());
  }
  adapter_ = std::move(adapter);
}

namespace {

Rounding rounding_of(const Matrix& weight, const Activations& x, int row) {
  return weight.quantised() && x.has_ints() ? x.rounding(row) : Rounding::kFloat;
}

// Row groups of a matrix, in whole bands, that stay in a core's L2 while two kernels go over them
// one after another.
int64_t groups_of_l2(const FormatKernels& format, const Matrix& weight) {
  constexpr int64_t kBytes = 512 << 10;
  const int64_t band = quant::kBandGroups * weight.cols() / format.values * format.record_bytes;
  return std::max<int64_t>(kBytes / band, 1) * quant::kBandGroups;
}

}  // namespace

void matmul_rows(const KernelTable& kernels, const Matrix& weight, const Activations& x,
                 const int* tokens, int num_tokens, Range groups, float* const* y, void** scratch,
                 NextRows next) {
  const FormatKernels& format = format_kernels(kernels, weight.gguf_id());
  // Rows in floats, which is all that float weights meet, then those in halves, then in digits.
  const void** inputs = const_cast<const void**>(scratch);
  float** outputs = reinterpret_cast<float**>(scratch + num_tokens);
  int count = 0;
  const auto gather = [&](Rounding kind) {
    const int before = count;
    for (int i = 0; i < num_tokens; ++i) {
      const int row = tokens ? tokens[i] : i;
      if (rounding_of(weight, x, row) != kind) continue;
      inputs[count] = kind == Rounding::kFloat ? static_cast<const void*>(x.floats(row))
                                               : static_cast<const void*>(x.ints(row));
      outputs[count++] = y[i];
    }
    return count - before;
  };
  const int floats = gather(Rounding::kFloat), exact = gather(Rounding::kExact);
  const int digits = gather(Rounding::kDigit), ints = exact + digits;
  const bool is_twofold = format.few_for_all && exact != 0 && digits != 0;
  const int64_t step = is_twofold ? groups_of_l2(format, weight) : groups.end;
  for (int64_t begin = groups.begin, end; begin < groups.end; begin = end) {
    end = std::min((begin / step + 1) * step, groups.end);
    for (const RowSlice& slice : weight.slices()) {
      const int64_t first = slice.row_begin / 16, last = first + (slice.rows + 15) / 16;
      const Range part{std::max(begin, first), std::min(end, last)};
      if (part.begin >= part.end) continue;
      const int64_t rows_before = (part.begin - groups.begin) * 16;
      for (int i = 0; i < count; ++i) outputs[i] += rows_before;
      MatmulTask task = {slice.data,       weight.cols(), part.begin - first,
                         part.end - first, slice.rows,    Rounding::kFloat,
                         floats,           inputs,        outputs};
      if (floats != 0) matmul(format, task);
      task.rounding = digits != 0 ? Rounding::kDigit : Rounding::kExact;
      task.num_tokens = ints;
      task.num_exact = digits != 0 ? exact : 0;
      task.x += floats;
      task.y += floats;
      const NextRows after = part.end < groups.end ? NextRows{&weight, part.end} : next;
      if (after.matrix) {
        task.next[0] = first_record(kernels, *after.matrix, after.group);
        task.next[1] = first_record(kernels, *after.matrix, after.group + 1);
        if (!task.next[1]) task.next[1] = task.next[0];
      }
      if (ints != 0) matmul(format, task);
      for (int i = 0; i < count; ++i) outputs[i] -= rows_before;
    }
  }
}

namespace {

// y += scale * B (A x), a row at a time: adapters are small beside the weights they correct.
void add_adapter(Context& context, const LinearCall& call) {
  const LowRank& adapter = *call.linear->adapter();
  const int64_t k = call.linear->cols(), n = call.linear->rows();
  context.pool.run(call.x->rows(), [&](int64_t row, int) {
    const float* x = call.x->floats(static_cast<int>(row));
    float* y = call.y + row * call.y_stride;
    std::vector<float> inner(adapter.rank);
    for (int r = 0; r < adapter.rank; ++r)
      inner[r] = adapter.scale * context.kernels.dot(&adapter.a[r * k], x, k);
    for (int64_t i = 0; i < n; ++i)
      y[i] += context.kernels.dot(&adapter.b[i * adapter.rank], inner.data(), adapter.rank);
  });
}

std::span<const RowChunk> chunks_for_few(Context& context, std::span<const LinearCall> calls) {
  const Matrix** matrices = context.arena.take<const Matrix*>(calls.size());
  for (size_t i = 0; i < calls.size(); ++i) matrices[i] = &calls[i].linear->weight();
  return row_chunks(context, {matrices, calls.size()});
}

std::span<const RowChunk> chunks_for_many(Context& context, std::span<const LinearCall> calls,
                                          int64_t total) {
  const int64_t wanted = pieces_for(context, total, 2);
  RowChunk* chunks = context.arena.take<RowChunk>(wanted + calls.size());
  size_t count = 0;
  // In whole pairs of row groups, which the kernels multiply together.
  for (size_t i = 0; i < calls.size(); ++i) {
    const int64_t groups = (calls[i].linear->rows() + 15) / 16, pairs = (groups + 1) / 2;
    const int64_t parts = std::clamp<int64_t>(wanted * groups / total, 1, pairs);
    for (int64_t part = 0; part < parts; ++part) {
      const Range range = piece(pairs, parts, part);
      chunks[count++] = {static_cast<int>(i), {range.begin * 2, std::min(range.end * 2, groups)}};
    }
  }
  return {chunks, count};
}

}  // namespace

void run_linears(Context& context, std::span<const LinearCall> calls,
                 std::span<const Matrix* const> next) {
  Arena::Scope scope(context.arena);
  int64_t total = 0;
  int most_rows = 0;
  for (const LinearCall& call : calls) {
    KT_CHECK(call.x->cols() == call.linear->cols(), call.linear->weight().name(), ": input has ",
             call.x->cols(), " columns, the weight ", call.linear->cols());
    total += (call.linear->rows() + 15) / 16;
    most_rows = std::max(most_rows, call.x->rows());
  }
  if (most_rows == 0) return;
  if (most_rows <= kFewTokens) expect_rows(context, next);
  const std::span<const RowChunk> chunks = most_rows <= kFewTokens
                                               ? chunks_for_few(context, calls)
                                               : chunks_for_many(context, calls, total);
  const int threads = context.pool.threads();
  void** scratch = context.arena.take<void*>(size_t(threads) * 2 * most_rows);
  float** outputs = context.arena.take<float*>(size_t(threads) * most_rows);
  context.pool.run(static_cast<int64_t>(chunks.size()), [&](int64_t index, int worker) {
    const LinearCall& call = calls[chunks[index].matrix];
    const Range groups = chunks[index].groups;
    const RowChunk& after = chunk_after(chunks, index);
    const int m = call.x->rows();
    float** y = outputs + int64_t{worker} * most_rows;
    for (int row = 0; row < m; ++row) y[row] = call.y + row * call.y_stride + groups.begin * 16;
    matmul_rows(context.kernels, call.linear->weight(), *call.x, nullptr, m, groups, y,
                scratch + int64_t{worker} * 2 * most_rows,
                {&calls[after.matrix].linear->weight(), after.groups.begin});
    const std::span<const float> bias = call.linear->bias();
    if (bias.empty()) return;
    const int64_t end = std::min<int64_t>(groups.end * 16, call.linear->rows());
    for (int row = 0; row < m; ++row)
      for (int64_t i = groups.begin * 16; i < end; ++i) call.y[row * call.y_stride + i] += bias[i];
  });
  for (const LinearCall& call : calls) {
    if (call.linear->adapter()) add_adapter(context, call);
  }
}

}  // namespace kt::cpu
