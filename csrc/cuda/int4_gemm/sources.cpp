// Where 4-bit weights come from: floats, GGUF blocks.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/half.h"
#include "cuda/int4_gemm/pack.h"
#include "quant/formats.h"

namespace kt::cuda {

namespace {

struct Rounded {
  float scale, offset;
  double error;
};

constexpr int kLanes = 4;  // values at a time: groups are multiples of it

int code_of(float v, float offset, float inverse) {
  const float place = (v - offset) * inverse + 8.5f;
  return static_cast<int>(std::min(std::max(0.0f, place), 15.5f));  // NaN: 0, as below
}

float inverse_of(float scale) { return std::isfinite(1 / scale) ? 1 / scale : 0; }

/// Squared error of one group for a given scale and offset. Loading a model asks for every value
/// some twenty times, hence vectors by hand: compilers make branches of code_of().
double group_error(const float* v, int count, float scale, float offset) {
  using Floats = float __attribute__((vector_size(4 * kLanes)));
  using Ints = int32_t __attribute__((vector_size(4 * kLanes)));
  const float inverse = inverse_of(scale);
  const Floats least{}, most = least + 15.5f;
  Floats errors{};
  for (int i = 0; i < count; i += kLanes) {
    Floats x;
    std::memcpy(&x, v + i, sizeof x);
    Floats place = (x - offset) * inverse + 8.5f;
    place = place > least ? place : least;
    place = place < most ? place : most;
    const Floats q = __builtin_convertvector(__builtin_convertvector(place, Ints), Floats);
    const Floats d = (q - 8.0f) * scale + offset - x;
    errors += d * d;
  }
  double error = 0;
  for (int lane = 0; lane < kLanes; ++lane) error += errors[lane];
  return error;
}

/// Searches the range's shrinkage: clipping the extremes a little often lowers the squared error.
Rounded best_scale(const float* v, int count, bool symmetric) {
  const auto [low, high] = std::minmax_element(v, v + count);
  Rounded best{0, 0, INFINITY};
  const auto consider = [&](float scale, float offset) {
    const double error = group_error(v, count, scale, offset);
    if (error < best.error) best = {scale, offset, error};
  };
  consider(0, 0);
  for (int step = 0; step <= 12; ++step) {
    const float shrink = 1.0f - 0.025f * static_cast<float>(step);
    if (symmetric) {
      // The code of -8 is worth having on the side of the larger magnitude.
      const float extreme = -*low > *high ? *low : *high;
      consider(shrink * extreme / -8.0f, 0);
      consider(shrink * std::max(-*low, *high) / 7.0f, 0);
    } else {
      const float middle = (*low + *high) / 2, span = shrink * (*high - *low);
      consider(span / 15, middle + span / 30);
    }
  }
  return best;
}

}  // namespace

Int4Matrix quantise_int4(std::span<const float> values, int n, int k, int group, bool symmetric) {
  KT_CHECK(group > 0 && group % kLanes == 0 && k % group == 0, "k=", k,
           " must be a multiple of the group of ", group, ", and that of ", kLanes);
  KT_CHECK(values.size() == size_t(n) * k, values.size(), " values for ", n, " x ", k);
  Int4Matrix m{n, k, group, {}, {}, {}};
  m.codes.resize(values.size());
  const size_t groups = values.size() / group;
  m.scales.resize(groups);
  if (!symmetric) m.offsets.resize(groups);
  for (size_t g = 0; g < groups; ++g) {
    const float* v = values.data() + g * group;
    const Rounded best = best_scale(v, group, symmetric);
    const float inverse = inverse_of(best.scale);
    for (int i = 0; i < group; ++i)
      m.codes[g * group + i] = static_cast<uint8_t>(code_of(v[i], best.offset, inverse));
    m.scales[g] = best.scale;
    if (!symmetric) m.offsets[g] = best.offset;
  }
  return m;
}

namespace {

/// Keeps codes and scales of formats that are 4-bit affine in groups of 32.
template <class F>
void take_codes(std::span<const uint8_t> blocks, Int4Matrix& m) {
  const size_t count = size_t(m.n) * m.k;
  m.codes = std::vector<uint8_t>(count);
  m.scales = std::vector<float>(count / 32);
  if (F::kHasMin) m.offsets = std::vector<float>(count / 32);
  const auto* block = reinterpret_cast<const typename F::Block*>(blocks.data());
  for (size_t at = 0; at < count; at += F::kValues, ++block) {
    float scale[F::kValues / 32], min[F::kValues / 32];
    quant::unpack_ints(*block, m.codes.data() + at, scale, min);
    for (int g = 0; g < F::kValues / 32; ++g) {
      m.scales[at / 32 + g] = scale[g];
      // scale (q - kOffset) + min = scale (q - 8) + (min + scale (8 - kOffset))
      if (F::kHasMin)
        m.offsets[at / 32 + g] = min[g] + scale[g] * static_cast<float>(8 - F::kOffset);
    }
  }
}

}  // namespace

Int4Matrix int4_from_gguf(std::span<const uint8_t> blocks, int gguf_id, int n, int k, int group,
                          bool symmetric, FloatType type, Int4Error* error) {
  const quant::FormatInfo* info = quant::find_format(gguf_id);
  if (!info) throw quant::unsupported_format(gguf_id);
  KT_CHECK(k % info->values_per_block == 0, "k=", k, " must be a multiple of ",
           info->values_per_block, " for ", info->name);
  KT_CHECK(blocks.size() == size_t(n) * k / info->values_per_block * info->bytes_per_block,
           blocks.size(), " bytes are not ", n, " x ", k, " values of ", info->name);
  std::vector<float> values(size_t(n) * k);
  Int4Matrix m{n, k, group, {}, {}, {}};
  quant::visit_format(gguf_id, [&]<class F>() {
    const auto* block = reinterpret_cast<const typename F::Block*>(blocks.data());
    for (size_t at = 0; at < values.size(); at += F::kValues) unpack(*block++, values.data() + at);
    if constexpr (std::is_same_v<F, quant::Q4_0> || std::is_same_v<F, quant::Q4_1> ||
                  std::is_same_v<F, quant::Q4_K>) {
      if (group == 32 && !(symmetric && F::kHasMin)) take_codes<F>(blocks, m);
    }
  });
  if (m.codes.empty()) m = quantise_int4(values, n, k, group, symmetric);
  if (error) {
    const auto rounded = [type](float v) {
      return type == FloatType::kBf16 ? bf16_to_float(float_to_bf16(v))
                                      : half_to_float(float_to_half(v));
    };
    *error = {};
    for (size_t g = 0; g < m.scales.size(); ++g) {
      const double scale = rounded(m.scales[g]);
      const double offset = m.offsets.empty() ? 0.0 : rounded(m.offsets[g]);
      for (size_t i = g * group; i < (g + 1) * group; ++i) {
        const double difference = scale * (m.codes[i] - 8) + offset - values[i];
        error->squared += difference * difference;
        error->power += double{values[i]} * values[i];
      }
    }
  }
  return m;
}

}  // namespace kt::cuda
