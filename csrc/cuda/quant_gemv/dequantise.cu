// One warp per 16 rows x 256 values: the chunk comes to shared memory as for the product, and
// leaves row by row, 8 bytes per lane. Values are rounded once, from scale * code + minimum in
// float.
#include "cuda/quant_gemv/dequantise.h"

#include "base/error.h"
#include "cuda/quant_gemv/source.h"
#include "quant/formats.h"

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
    if (index >= static_cast<int64_t>(div_up(p.rows, 16)) * chunks) return;
    const int own = static_cast<int>(index / chunks), chunk = static_cast<int>(index % chunks);
    const int group = p.first / 16 + own;
    const Shared<uint32_t> weights = shared_at<uint32_t>(warp_id() * unsigned{Source::kChunkBytes});
    Source::load(weights, Global<const uint8_t>(p.weights), p.n, p.k, group, chunk);
    async_commit();
    async_wait<0>();
    sync_warp();
    const int count = min(kChunk, p.k - chunk * kChunk);
    const Global<Words2> out(static_cast<Words2*>(p.out));
    for (int row = 0; row < 16 && own * 16 + row < p.rows; ++row) {
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
        out[(static_cast<int64_t>(own * 16 + row) * p.k + chunk * kChunk + v) / 4] = result;
      }
    }
  }
};

/// Rows of floats: a thread rounds two values.
template <class From, class T>
struct RoundRows {
  using Params = DequantiseParams;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  KT_DEVICE static void run(const Params& p) {
    const int64_t pair = static_cast<int64_t>(block_x()) * kThreads + thread_id();
    if (pair >= static_cast<int64_t>(p.rows) * p.k / 2) return;
    const Global<const From> from = Global<const From>(reinterpret_cast<const From*>(p.weights)) +
                                    static_cast<int64_t>(p.first) * p.k;
    Global<uint32_t>(static_cast<uint32_t*>(p.out))[pair] =
        pack2<T>(to_float(From(from[2 * pair])), to_float(From(from[2 * pair + 1])));
  }
};

template <class From>
void start_floats(const DequantiseParams& p) {
  const int64_t blocks = div_up<int64_t>(int64_t{p.rows} * p.k / 2, 256);
  const LaunchShape shape{.grid_x = static_cast<unsigned>(blocks), .threads = 256};
  if (p.to_bf16) return launch<RoundRows<From, bf16_t>>(shape, p, p.stream);
  launch<RoundRows<From, half_t>>(shape, p, p.stream);
}

bool try_floats(const DequantiseParams& p) {
  if (p.layout != WeightLayout::kRows) return false;
  if (p.gguf_id == quant::F32::kGgufId) return start_floats<float>(p), true;
  if (p.gguf_id == quant::F16::kGgufId) return start_floats<half_t>(p), true;
  if (p.gguf_id == quant::BF16::kGgufId) return start_floats<bf16_t>(p), true;
  return false;
}

template <class Source>
bool start(const DequantiseParams& p) {
  const int64_t warps = int64_t{div_up(p.rows, 16)} * div_up(p.k, kChunk);
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

void launch_dequantise(const DequantiseParams& given) {
  DequantiseParams p = given;
  KT_CHECK(p.n > 0 && p.k > 0 && p.k % 32 == 0, "weights of ", p.n, " x ", p.k,
           ": columns must be a multiple of 32");
  if (p.rows == 0) p.rows = p.n - p.first;
  KT_CHECK(p.first >= 0 && p.first % 16 == 0 && p.rows > 0 && p.first + p.rows <= p.n, "rows ",
           p.first, " to ", p.first + p.rows, " of ", p.n);
  if (p.layout == WeightLayout::kFp8) {
    start<Fp8Source>(p);
  } else if (!try_floats(p) && !try_formats(p, DeviceFormats{})) {
    throw Unsupported(concat("no CUDA kernel for weights of GGUF type ", p.gguf_id));
  }
}

}  // namespace kt::cuda
