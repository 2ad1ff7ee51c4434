// RMSNorm and SwiGLU. Norm: a block per token, two passes over the row (the second hits L1); the
// residual addition rides along. SwiGLU: two values per thread.
#include "base/error.h"
#include "cuda/layer/block_reduce.h"
#include "cuda/layer/layer.h"

namespace kt::cuda {

namespace {

template <class T>
struct RmsNormKernel {
  using Params = NormParams;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  KT_DEVICE static void run(const Params& p) {
    const int64_t row = static_cast<int64_t>(block_x()) * (p.k / 2);
    const Global<Float2> hidden = Global<Float2>(reinterpret_cast<Float2*>(p.hidden)) + row;
    const Global<const Float2> delta(reinterpret_cast<const Float2*>(p.delta));
    const Global<const Float2> weight(reinterpret_cast<const Float2*>(p.weight));
    float squares = 0;
    for (int i = thread_id(); i < p.k / 2; i += kThreads) {
      Float2 v = hidden[i];
      if (p.delta) {
        const Float2 d = delta[row + i];
        v.x[0] += d.x[0], v.x[1] += d.x[1];
        hidden[i] = v;
      }
      squares += v.x[0] * v.x[0] + v.x[1] * v.x[1];
    }
    const float mean = block_sum(squares, shared_at<float>(0)) / static_cast<float>(p.k);
    const float factor = rsqrt_fast(mean + p.eps);
    // A thread reads what it wrote itself.
    for (int i = thread_id(); i < p.k / 2; i += kThreads) {
      const Float2 v = hidden[i], w = weight[i];
      const Float2 out{{v.x[0] * factor * w.x[0], v.x[1] * factor * w.x[1]}};
      if (p.out_float) Global<Float2>(reinterpret_cast<Float2*>(p.out_float))[row + i] = out;
      if (p.out_16)
        Global<uint32_t>(static_cast<uint32_t*>(p.out_16))[row + i] = pack2<T>(out.x[0], out.x[1]);
    }
  }
};

template <class T>
struct SwigluKernel {
  using Params = SwigluParams;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  KT_DEVICE static void run(const Params& p) {
    const int64_t i = static_cast<int64_t>(block_x()) * kThreads + thread_id();
    if (i >= p.count / 2) return;
    const Float2 gate = Global<const Float2>(reinterpret_cast<const Float2*>(p.gate))[i];
    const Float2 up = Global<const Float2>(reinterpret_cast<const Float2*>(p.up))[i];
    const float a = gate.x[0] / (1.0f + exp_fast(-gate.x[0])) * up.x[0];
    const float b = gate.x[1] / (1.0f + exp_fast(-gate.x[1])) * up.x[1];
    Global<uint32_t>(static_cast<uint32_t*>(p.out))[i] = pack2<T>(a, b);
  }
};

}  // namespace

void launch_rms_norm(const NormParams& p) {
  KT_CHECK(p.m > 0 && p.k > 0 && p.k % 2 == 0, "norm over ", p.m, " x ", p.k);
  const LaunchShape shape{.grid_x = unsigned(p.m), .threads = 256, .shared_bytes = 32};
  if (p.type == Out16::kBf16) return launch<RmsNormKernel<bf16_t>>(shape, p, p.stream);
  launch<RmsNormKernel<half_t>>(shape, p, p.stream);
}

void launch_swiglu(const SwigluParams& p) {
  KT_CHECK(p.count > 0 && p.count % 2 == 0, p.count, " values must be even in number");
  const LaunchShape shape{.grid_x = unsigned(div_up<int64_t>(p.count / 2, 256)), .threads = 256};
  if (p.type == Out16::kBf16) return launch<SwigluKernel<bf16_t>>(shape, p, p.stream);
  launch<SwigluKernel<half_t>>(shape, p, p.stream);
}

}  // namespace kt::cuda
