// One warp per 16 rows x 256 values: the chunk comes to shared memory as for the product, and
// leaves row by row, 8 bytes per lane. Values are rounded once, from scale * code + minimum in
// float.
#include "cuda/quant_gemv/dequantise.h"

#include "base/error.h"
#include "cuda/quant_gemv/source.h"

namespace kt::cuda {

namespace {

template <class Source, class T>
struct Dequantise {
  using Params = DequantiseParams;
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 2;
  static constexpr unsigned kSharedBytes = 4 * Source::kChunkBytes;

  KT_DEVICE static void run(const Params& p) {
    const int chunks = div_up(p.k, kChunk), lane = lane_id();
    const int64_t index = static_cast<int64_t>(block_x()) * 4 + warp_id();
    if (index >= static_cast<int64_t>(div_up(p.n, 16)) * chunks) return;
    const int group = static_cast<int>(index / chunks), chunk = static_cast<int>(index % chunks);
    const Shared<uint32_t> weights = shared_at<uint32_t>(warp_id() * unsigned{Source::kChunkBytes});
    Source::load(weights, Global<const uint8_t>(p.weights), p.n, p.k, group, chunk);
    async_commit();
    async_wait<0>();
    sync_warp();
    const int count = min(kChunk, p.k - chunk * kChunk);
    const Global<Words2> out(static_cast<Words2*>(p.out));
    for (int row = 0; row < 16 && group * 16 + row < p.n; ++row) {
      for (int v = lane * 4; v < count; v += 128) {
        float block_scale = 0;
        if (p.block_scales)
          block_scale = Global<const float>(
              p.block_scales)[static_cast<int64_t>(group * 16 / 128) * div_up(p.k, 128) +
                              (chunk * kChunk + v) / 128];
        uint32_t pairs[2];
        Source::pair(weights, row, v, &pairs[0], &pairs[1]);
        const float scale = Source::scale(weights, row, v / Source::kGroup, block_scale);
        const float minimum =
            Source::kHasMin ? Source::minimum(weights, row, v / Source::kGroup) : 0.0f;
        Words2 result;
        KT_UNROLL
        for (int h = 0; h < 2; ++h) {
          const Float2 codes = unpack2<half_t>(pairs[h]);
          result.x[h] = pack2<T>(fma(scale, codes.x[0], minimum), fma(scale, codes.x[1], minimum));
        }
        out[(static_cast<int64_t>(group * 16 + row) * p.k + chunk * kChunk + v) / 4] = result;
      }
    }
  }
};

template <class Source>
bool start(const DequantiseParams& p) {
  const int64_t warps = int64_t{div_up(p.n, 16)} * div_up(p.k, kChunk);
  const LaunchShape shape{.grid_x = static_cast<unsigned>(div_up<int64_t>(warps, 4)),
                          .threads = 128,
                          .shared_bytes = Dequantise<Source, half_t>::kSharedBytes};
  if (p.to_bf16) {
    launch<Dequantise<Source, bf16_t>>(shape, p, p.stream);
  } else {
    launch<Dequantise<Source, half_t>>(shape, p, p.stream);
  }
  return true;
}

template <class F>
bool try_format(const DequantiseParams& p) {
  if (p.gguf_id != F::kGgufId) return false;
  if (p.layout == WeightLayout::kR16) return start<R16Source<F>>(p);
  if constexpr (sizeof(typename F::Block) % 2 == 0) {
    if (p.layout == WeightLayout::kBlocks) return start<BlockSource<F>>(p);
  }
  return false;
}

template <class... Fs>
bool try_formats(const DequantiseParams& p, quant::TypeList<Fs...>) {
  return (try_format<Fs>(p) || ...);
}

}  // namespace

void launch_dequantise(const DequantiseParams& p) {
  KT_CHECK(p.n > 0 && p.k > 0 && p.k % 32 == 0, "weights of ", p.n, " x ", p.k,
           ": columns must be a multiple of 32");
  if (p.layout == WeightLayout::kFp8) {
    start<Fp8Source>(p);
  } else if (!try_formats(p, DeviceFormats{})) {
    throw Unsupported(concat("no CUDA kernel for weights of GGUF type ", p.gguf_id));
  }
}

}  // namespace kt::cuda
