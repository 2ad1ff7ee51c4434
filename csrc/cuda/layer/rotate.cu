// A warp per (token, head): norm over the first values, rotation of a part, store. The row is read
// twice, for FP8 three times; nothing is kept but the sum of squares and the largest value.
#include "base/error.h"
#include "cuda/layer/block_reduce.h"
#include "cuda/layer/layer.h"

namespace kt::cuda {

namespace {

template <class T>
struct RotateKernel {
  using Params = RotateParams;
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 1;

  KT_DEVICE static void run(const Params& p) {
    const int64_t row = static_cast<int64_t>(block_x()) * 4 + warp_id();
    if (row >= static_cast<int64_t>(p.tokens) * p.heads) return;
    const int token = static_cast<int>(row / p.heads), head = static_cast<int>(row % p.heads);
    const Global<const float> x = Global<const float>(p.x) + row * p.stride;
    float factor = 1;
    if (p.norm_weight) {
      float squares = 0;
      for (int i = lane_id(); i < p.norm_dim; i += 32) {
        const float v = biased(p, x[i], head, i);
        squares += v * v;
      }
      factor = rsqrt_fast(warp_sum(squares) / static_cast<float>(p.norm_dim) + p.eps);
    }
    const int position = Global<const int32_t>(p.position)[token];
    int64_t out_row = row;
    if (p.pages) {
      const int sequence = Global<const int32_t>(p.sequence)[token];
      const int page = Global<const int32_t>(
          p.pages)[static_cast<int64_t>(sequence) * p.max_pages + position / 64];
      out_row = (static_cast<int64_t>(page) * 64 + position % 64) * p.heads + head;
    }
    if (!p.exponents) {
      const Global<T> out = Global<T>(static_cast<T*>(p.out)) + out_row * p.dim;
      return each(p, row, head, position, factor,
                  [&](int i, float v) { out[i] = from_float<T>(v); });
    }
    float most = 0;
    each(p, row, head, position, factor, [&](int, float v) { most = max(most, abs(v)); });
    const uint32_t exponent = exponent_for(warp_max(most));
    const float inverse = float_of((254 - exponent) << 23);
    const Global<fp8_t> out = Global<fp8_t>(static_cast<fp8_t*>(p.out)) + out_row * p.dim;
    if (lane_id() == 0) Global<uint8_t>(p.exponents)[out_row] = static_cast<uint8_t>(exponent);
    each(p, row, head, position, factor,
         [&](int i, float v) { out[i] = from_float<fp8_t>(v * inverse); });
  }

  /// The least e for which most <= 448 2^(e - 127), as far as f16 has 2^(e - 127).
  KT_DEVICE static uint32_t exponent_for(float most) {
    const uint32_t bits = bits_of(most / 448.0f);
    const int exponent = static_cast<int>(bits >> 23) + ((bits & 0x7FFFFF) != 0 ? 1 : 0);
    return static_cast<uint32_t>(max(127 - 24, min(127 + 15, exponent)));
  }

  /// put(i, value) for the values of a row that are this lane's.
  template <class Put>
  KT_DEVICE static void each(const Params& p, int64_t row, int head, int position, float factor,
                             const Put& put) {
    const Global<const float> x = Global<const float>(p.x) + row * p.stride;
    const int rope_end = p.rope_begin + p.rope_dim;
    for (int i = lane_id(); i < p.dim; i += 32)
      if (i < p.rope_begin || i >= rope_end)
        put(i, weighted(p, biased(p, x[i], head, i), i, factor));
    // The rotated part may stand elsewhere; its norm, where it has one, is the row's.
    const Global<const float> part =
        p.second ? Global<const float>(p.second) + row * p.second_stride : x + p.rope_begin;
    for (int i = lane_id(); i < p.rope_dim / 2; i += 32) {
      const int first = p.interleaved ? 2 * i : i,
                second = p.interleaved ? 2 * i + 1 : i + p.rope_dim / 2;
      const float a = weighted(p, biased(p, part[first], head, p.rope_begin + first),
                               p.rope_begin + first, factor);
      const float b = weighted(p, biased(p, part[second], head, p.rope_begin + second),
                               p.rope_begin + second, factor);
      const float angle = static_cast<float>(position) * Global<const float>(p.inv_freq)[i];
      const float c = cosine(angle) * p.attention_scaling, s = sine(angle) * p.attention_scaling;
      put(p.rope_begin + i, a * c - b * s);
      put(p.rope_begin + i + p.rope_dim / 2, b * c + a * s);
    }
  }

  KT_DEVICE static float weighted(const Params& p, float v, int i, float factor) {
    return p.norm_weight && i < p.norm_dim ? v * factor * Global<const float>(p.norm_weight)[i] : v;
  }
  KT_DEVICE static float biased(const Params& p, float v, int head, int i) {
    return p.bias ? v + Global<const float>(p.bias)[static_cast<int64_t>(head) * p.dim + i] : v;
  }
};

}  // namespace

void launch_rotate(const RotateParams& p) {
  KT_CHECK(p.tokens > 0 && p.heads > 0 && p.dim > 0, "rotation of ", p.tokens, " x ", p.heads,
           " x ", p.dim);
  KT_CHECK(p.rope_begin >= 0 && p.rope_dim % 2 == 0 && p.rope_begin + p.rope_dim <= p.dim,
           "values ", p.rope_begin, " to ", p.rope_begin + p.rope_dim, " of ", p.dim,
           " cannot be rotated");
  KT_CHECK(!p.bias || !p.second, "a bias for rows in two places");
  const int64_t rows = int64_t{p.tokens} * p.heads;
  const LaunchShape shape{.grid_x = unsigned(div_up<int64_t>(rows, 4)), .threads = 128};
  if (p.type == Out16::kBf16) return launch<RotateKernel<bf16_t>>(shape, p, p.stream);
  launch<RotateKernel<half_t>>(shape, p, p.stream);
}

}  // namespace kt::cuda
