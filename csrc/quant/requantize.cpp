#include "quant/requantize.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/os_team.h"
#include "quant/convert.h"
#include "quant/formats.h"
#include "quant/packed.h"
#include "quant/quantize.h"

namespace kt::quant {
namespace {

constexpr float kLargestHalf = 65504.0f;
constexpr size_t kGroup128 = 128;

// 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinity, 0x7F and 0xFF are NaN.
std::array<float, 256> e4m3_table() {
  std::array<float, 256> table{};
  for (int code = 0; code < 256; ++code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
    if ((code & 0x7F) == 0x7F) value = std::nanf("");
    table[code] = code & 0x80 ? -value : value;
  }
  return table;
}

size_t source_row_bytes(const Source& source, size_t k) {
  return source.gguf_id == Source::kFp8 ? k : row_bytes(source.gguf_id, k);
}

void check_source(const Source& source, size_t n, size_t k) {
  KT_CHECK(n > 0 && k > 0, "requantize: a matrix of ", n, " x ", k);
  if (source.gguf_id == Source::kPacked) {
    KT_CHECK(source.packed != nullptr && source.packed->k == k, "requantize: no packed matrix of ",
             k, " columns");
    return;  // rows are checked as they are read
  }
  KT_CHECK(source.bytes.size() == n * source_row_bytes(source, k), "requantize: ",
           source.bytes.size(), " bytes are no ", n, " rows of ", source_row_bytes(source, k));
  if (source.gguf_id != Source::kFp8) return;
  KT_CHECK(source.block > 0, "requantize: block=0");
  const size_t rows = (n + source.block - 1) / source.block;
  const size_t cols = (k + source.block - 1) / source.block;
  KT_CHECK(source.scales.size() == rows * cols, "requantize: ", source.scales.size(),
           " scales for ", rows, " x ", cols, " blocks of ", source.block);
}

// Rows first .. first + count as floats.
void read_rows(const Source& source, size_t first, size_t count, size_t k, float* out) {
  if (source.gguf_id == Source::kPacked) {
    return packed_to_floats(*source.packed, source.first + first, count, {out, count * k});
  }
  const size_t bytes = source_row_bytes(source, k);
  const auto part = source.bytes.subspan(first * bytes, count * bytes);
  if (source.gguf_id != Source::kFp8) return dequantize(source.gguf_id, part, {out, count * k});
  static const std::array<float, 256> kValues = e4m3_table();
  const size_t cols = (k + source.block - 1) / source.block;
  for (size_t row = 0; row < count; ++row) {
    const float* scales = source.scales.data() + (first + row) / source.block * cols;
    for (size_t i = 0; i < k; ++i) {
      out[row * k + i] = kValues[part[row * k + i]] * scales[i / source.block];
    }
  }
}

// The scale for 128 values in -8..7 with little weighted squared error: the value of largest size
// becomes -8, or the range is shrunk a little, which clips it and serves the many.
float group128_scale(const float* x, const float* w) {
  float extreme = 0;
  for (size_t i = 0; i < kGroup128; ++i) {
    if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
  }
  if (extreme == 0) return 0;
  float best = 0;
  double least = -1;
  for (int step = 0; step < 24; ++step) {
    const float scale = half_to_float(float_to_half(extreme / -8.0f * (1.06f - 0.02f * step)));
    if (scale == 0) continue;
    double error = 0;
    for (size_t i = 0; i < kGroup128; ++i) {
      const float q = std::clamp(std::nearbyint(x[i] / scale), -8.0f, 7.0f);
      const double miss = x[i] - q * scale;
      error += (w != nullptr ? w[i] : 1.0f) * miss * miss;
    }
    if (least < 0 || error < least) {
      least = error;
      best = scale;
    }
  }
  return best;
}

void quantize_group128(const float* x, size_t count, size_t k, const float* w, uint8_t* out) {
  for (size_t i = 0; i < count * k; i += kGroup128) {
    const float scale = group128_scale(x + i, w != nullptr ? w + i % k : nullptr);
    for (size_t at = i; at < i + kGroup128; at += Q4_0::kValues, out += sizeof(Q4_0::Block)) {
      uint8_t q[Q4_0::kValues];
      for (int j = 0; j < Q4_0::kValues; ++j) {
        const float level = scale == 0 ? 0.0f : std::nearbyint(x[at + j] / scale);
        q[j] = static_cast<uint8_t>(std::clamp(level, -8.0f, 7.0f) + 8.0f);
      }
      const uint16_t half = float_to_half(scale);
      std::memcpy(out, &half, sizeof half);
      for (int j = 0; j < Q4_0::kValues / 2; ++j) {
        out[2 + j] = static_cast<uint8_t>(q[j] | q[j + Q4_0::kValues / 2] << 4);
      }
    }
  }
}

// One thread's share: rows in pieces, with room for their floats before and after.
class Worker {
 public:
  Worker(const Source& source, size_t k, const Target& target, std::span<const float> importance,
         std::span<uint8_t> out, size_t rows_at_once)
      : source_(source), k_(k), target_(target), importance_(importance), out_(out),
        bytes_(row_bytes(target.gguf_id, k)), before_(rows_at_once * k), after_(before_.size()) {}

  void rows(size_t first, size_t count) {
    read_rows(source_, first, count, k_, before_.data());
    const auto out = out_.subspan(first * bytes_, count * bytes_);
    const bool blocks = find_format(target_.gguf_id)->values_per_block > 1;
    size_t not_finite = 0, too_large = 0;
    for (size_t i = 0; i < count * k_; ++i) {
      const float size = std::fabs(before_[i]);
      not_finite += !std::isfinite(size);
      too_large += blocks && std::isfinite(size) && size > kLargestHalf;
      if (std::isfinite(size)) result_.largest = std::max(result_.largest, size);
    }
    result_.not_finite += not_finite;
    result_.out_of_range += too_large;
    if (not_finite + too_large > 0) {
      std::fill(out.begin(), out.end(), uint8_t{0});
      return;
    }
    if (target_.group128) {
      const float* w = importance_.empty() ? nullptr : importance_.data();
      quantize_group128(before_.data(), count, k_, w, out.data());
    } else {
      quantize(target_.gguf_id, {before_.data(), count * k_}, k_, importance_, out);
    }
    dequantize(target_.gguf_id, out, {after_.data(), count * k_});
    double error = 0, power = 0;
    for (size_t i = 0; i < count * k_; ++i) {
      const double miss = static_cast<double>(after_[i]) - before_[i];
      result_.out_of_range += !std::isfinite(after_[i]);
      error += miss * miss;
      power += static_cast<double>(before_[i]) * before_[i];
    }
    result_.error += error;
    result_.power += power;
  }

  const Requantized& result() const { return result_; }

 private:
  const Source& source_;
  size_t k_;
  Target target_;
  std::span<const float> importance_;
  std::span<uint8_t> out_;
  size_t bytes_;
  std::vector<float> before_, after_;  // [rows at once, k]
  Requantized result_;
};

}  // namespace

Requantized& Requantized::operator+=(const Requantized& other) {
  error += other.error;
  power += other.power;
  largest = std::max(largest, other.largest);
  not_finite += other.not_finite;
  out_of_range += other.out_of_range;
  return *this;
}

Requantized requantize(const Source& source, size_t n, size_t k, const Target& target,
                       std::span<const float> importance, std::span<uint8_t> out, int threads) {
  check_source(source, n, k);
  KT_CHECK(out.size() == n * row_bytes(target.gguf_id, k), "requantize: room for ", out.size(),
           " bytes, the rows take ", n * row_bytes(target.gguf_id, k));
  KT_CHECK(importance.empty() || importance.size() == k, "requantize: ", importance.size(),
           " importances for rows of ", k, " values");
  KT_CHECK(!target.group128 || (target.gguf_id == Q4_0::kGgufId && k % kGroup128 == 0),
           "requantize: one scale for 128 values needs q4_0 and rows of a multiple of 128, not ", k);
  // Enough values to be worth a thread's turn, few enough to stay in its cache. Words along rows
  // share cache lines: 16 rows at least.
  const size_t least = source.gguf_id == Source::kPacked ? 16 : 1;
  const size_t piece = std::clamp<size_t>((size_t{1} << 16) / k, std::min(least, n), n);
  const size_t pieces = (n + piece - 1) / piece;
  const size_t team = std::clamp<size_t>(std::max(threads, 1), 1, pieces);
  os::Pieces left(pieces);
  std::vector<Requantized> results(team);
  os::share(left, team, [&](size_t self) {
    Worker worker(source, k, target, importance, out, piece);
    for (size_t i; left.take(i);) worker.rows(i * piece, std::min(piece, n - i * piece));
    results[self] = worker.result();
  });
  Requantized sum;
  for (const Requantized& one : results) sum += one;
  return sum;
}

void to_floats(const Source& source, size_t n, size_t k, std::span<float> out) {
  check_source(source, n, k);
  KT_CHECK(out.size() == n * k, "to_floats: room for ", out.size(), " values of ", n * k);
  read_rows(source, 0, n, k, out.data());
}

}  // namespace kt::quant
