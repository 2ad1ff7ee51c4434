#include "cpu/ops/kernel_meter.h"

#include <atomic>
#include <cstring>

#include "base/error.h"
#include "cpu/isa.h"
#include "quant/formats.h"
#include "quant/r16.h"

namespace kt::cpu {
namespace {

constexpr int64_t kPage = 2 << 20;

uint64_t next_random(uint64_t& state) {  // xorshift64
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

}  // namespace

KernelMeter::KernelMeter(Context& context, int64_t bytes) : context_(context) {
  KT_CHECK(bytes >= kPage, "kernel meter: ", bytes, " bytes are less than a huge page");
  memory_ = os::Memory(static_cast<size_t>(bytes / kPage * kPage));
  context_.pool.run(bytes / kPage, [&](int64_t page, int) {
    uint64_t state = 88172645463325252u + static_cast<uint64_t>(page);
    uint8_t* out = memory_.data() + page * kPage;
    for (int64_t i = 0; i < kPage; i += 8) {
      // With the top two bits of every byte clear, a half or a float is below 2 and no NaN.
      const uint64_t value = next_random(state) & 0x3F3F3F3F3F3F3F3Fu;
      std::memcpy(out + i, &value, sizeof value);
    }
  });
}

double KernelMeter::read(const uint8_t* data, int64_t bytes) {
  const int threads = context_.pool.threads();
  const int64_t lines = bytes / 512;
  std::atomic<int32_t> sum{0};
  const double start = os::seconds();
  context_.pool.run(threads, [&](int64_t index, int) {
    const Range part = piece(lines, threads, index);
    sum += context_.kernels.limits.read(data + part.begin * 512, (part.end - part.begin) * 512);
  });
  const double seconds = os::seconds() - start;
  sink_ ^= sum;
  return seconds;
}

KernelMeter::Times KernelMeter::run(int gguf_id, int64_t rows, int64_t cols, int tokens,
                                    Rounding rounding, int windows) {
  const FormatKernels& kernels = format_kernels(context_.kernels, gguf_id);
  KT_CHECK(rows > 0 && cols > 0 && tokens > 0 && windows > 0, "kernel meter: rows=", rows,
           " cols=", cols, " tokens=", tokens, " windows=", windows, " must be positive");
  int64_t group_bytes = 0;
  bool floats = rounding == Rounding::kFloat;
  quant::visit_format(gguf_id, [&]<class F>() {
    KT_CHECK(cols % F::kValues == 0, "kernel meter: ", cols, " columns are no multiple of ",
             F::kName, "'s block of ", F::kValues);
    group_bytes = cols / F::kValues * static_cast<int64_t>(quant::R16<F>::kRecordBytes);
    if (F::kGroup == 0) floats = true;
  });
  const int64_t groups = (rows + 15) / 16;
  Times times{groups * group_bytes, {}, {}};
  const int64_t slots = static_cast<int64_t>(memory_.size()) / times.bytes;
  KT_CHECK(slots > 0, "kernel meter: a matrix of ", times.bytes, " bytes does not fit into ",
           memory_.size());

  const size_t row_bytes = act_row_bytes(cols);
  std::vector<float> x(static_cast<size_t>(tokens) * cols), y(static_cast<size_t>(tokens) * rows);
  std::vector<uint8_t> ints(row_bytes * tokens);
  std::vector<const void*> inputs(tokens);
  uint64_t state = 1;
  for (float& value : x) value = static_cast<float>(next_random(state) % 2001) * 1e-3f - 1.0f;
  for (int t = 0; t < tokens; ++t) {
    inputs[t] = floats ? static_cast<const void*>(&x[t * cols]) : &ints[t * row_bytes];
    if (rounding == Rounding::kExact)
      context_.kernels.quantize_exact(&x[t * cols], 0, cols, &ints[t * row_bytes]);
    if (rounding == Rounding::kDigit)
      context_.kernels.quantize_digit(&x[t * cols], 0, cols, cols, &ints[t * row_bytes]);
  }
  const int threads = context_.pool.threads();
  std::vector<float*> outputs(static_cast<size_t>(threads) * tokens);
  int64_t slot = 0;
  const auto next_slot = [&] { return memory_.data() + slot++ % slots * times.bytes; };
  for (int window = 0; window < windows; ++window) {
    const uint8_t* weights = next_slot();
    const double start = os::seconds();
    context_.pool.run(threads, [&](int64_t index, int) {
      const Range part = piece(groups, threads, index);
      float** out = &outputs[index * tokens];
      for (int t = 0; t < tokens; ++t) out[t] = &y[t * rows + part.begin * 16];
      matmul(kernels, {weights, cols, part.begin, part.end, rows,
                       floats ? Rounding::kFloat : rounding, tokens, inputs.data(), out});
    });
    times.product.push_back(os::seconds() - start);
    times.read.push_back(read(next_slot(), times.bytes));
  }
  return times;
}

}  // namespace kt::cpu
