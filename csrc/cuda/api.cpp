#include "cuda/api.h"

#include <cstring>
#include <vector>

#include "base/error.h"
#include "cuda/api_guard.h"
#include "cuda/attention/flash.h"
#include "cuda/gemm/dense_gemm.h"
#include "cuda/graph/step.h"
#include "cuda/int4_gemm/dequantise_int4.h"
#include "cuda/int4_gemm/grouped.h"
#include "cuda/int4_gemm/int4_gemm.h"
#include "cuda/int4_gemm/pack.h"
#include "cuda/layer/layer.h"
#include "cuda/quant_gemv/dequantise.h"
#include "cuda/quant_gemv/quant_gemv.h"
#include "quant/convert.h"
#include "quant/quantize.h"

using namespace kt::cuda;

namespace kt::cuda {

std::string& last_api_error() {
  static thread_local std::string text;
  return text;
}

}  // namespace kt::cuda

namespace {

Int4GemmParams int4_params(int m, int n, int k, int group, int bf16) {
  Int4GemmParams p{};
  p.m = m, p.n = n, p.k = k, p.group = group;
  p.type = bf16 ? FloatType::kBf16 : FloatType::kF16;
  return p;
}

Prepared prepared(const void* fragments, const void* sums, const void* scales) {
  return {static_cast<half_t*>(const_cast<void*>(fragments)),
          static_cast<float*>(const_cast<void*>(sums)),
          static_cast<float*>(const_cast<void*>(scales))};
}

/// Writes down what a step is.
class TextRecorder : public StepRecorder {
 public:
  std::string text;
  void run(StepStream stream, StepOp op, int layer) override {
    text += kt::concat(name(stream), " ", name_of(op), " ", layer, "\n");
  }
  void order(StepStream from, StepStream to) override {
    text += kt::concat("order ", name(from), " ", name(to), "\n");
  }
  void post(uint64_t job) override { text += kt::concat("post ", job, "\n"); }
  void await(uint64_t job) override { text += kt::concat("await ", job, "\n"); }

 private:
  static const char* name(StepStream stream) {
    return stream == StepStream::kMain ? "main" : "side";
  }
};

}  // namespace

int kt_cuda_version() { return 8; }
const char* kt_cuda_error() { return last_api_error().c_str(); }

int kt_cuda_int4_sizes(int m, int n, int k, int group, int bf16, int sms, int arch,
                       size_t* workspace_bytes, int* counters) {
  return guarded([&] {
    const Int4GemmParams p = int4_params(m, n, k, group, bf16);
    const Int4Tile tile = choose_int4_tile(p, sms, arch);
    *workspace_bytes = int4_workspace_bytes(tile);
    *counters = int4_counters(p, tile);
  });
}

int kt_cuda_int4_gemm(const void* x, const void* weights, const void* scales, const void* offsets,
                      void* y, void* workspace, void* counters, int m, int n, int k, int group,
                      int bf16, int sms, int arch, void* stream) {
  return guarded([&] {
    Int4GemmParams p = int4_params(m, n, k, group, bf16);
    p.x = x, p.weights = static_cast<const uint8_t*>(weights), p.scales = scales;
    p.offsets = offsets, p.y = y, p.workspace = static_cast<float*>(workspace);
    p.counters = static_cast<int32_t*>(counters), p.stream = stream;
    launch_int4_gemm(p, choose_int4_tile(p, sms, arch));
  });
}

int kt_cuda_int4_grouped_sizes(int n, int k, int group, int max_items, int sms, int arch,
                               size_t* workspace_bytes, int* counters) {
  return guarded([&] {
    const PlacedInt4 m{n, k, group, false};
    const Int4Tile tile = choose_int4_grouped_tile(m, max_items, sms, arch);
    *workspace_bytes = int4_workspace_bytes(tile);
    *counters = int4_grouped_counters(m, max_items, tile);
  });
}

int kt_cuda_int4_grouped(const void* items, const void* num_items, const void* x,
                         const void* row_scales, void* y, void* workspace, void* counters,
                         int max_items, int n, int k, int group, int sms, int arch, void* stream) {
  return guarded([&] {
    const Int4GroupedParams p{static_cast<const GemvItem*>(items),
                              static_cast<const int32_t*>(num_items),
                              static_cast<const half_t*>(x),
                              static_cast<const float*>(row_scales),
                              static_cast<float*>(y),
                              static_cast<float*>(workspace),
                              static_cast<int32_t*>(counters),
                              max_items,
                              {n, k, group, false},
                              stream};
    launch_int4_grouped(p, choose_int4_grouped_tile(p.matrix, max_items, sms, arch));
  });
}

int kt_cuda_int4_pack(const float* values, int n, int k, int group, int symmetric, int bf16,
                      void* weights, void* scales, void* offsets) {
  return guarded([&] {
    const PackedInt4 packed =
        pack_int4(quantise_int4({values, size_t(n) * k}, n, k, group, symmetric != 0),
                  bf16 ? FloatType::kBf16 : FloatType::kF16);
    std::memcpy(weights, packed.weights.data(), packed.weights.size());
    std::memcpy(scales, packed.scales.data(), packed.scales.size() * 2);
    if (!symmetric) std::memcpy(offsets, packed.offsets.data(), packed.offsets.size() * 2);
  });
}

int kt_cuda_dequantise_int4(const void* weights, const void* scales, const void* offsets, void* out,
                            int n, int k, int group, void* stream) {
  return guarded([&] {
    launch_dequantise_int4({static_cast<const uint8_t*>(weights), scales, offsets,
                            static_cast<half_t*>(out), n, k, group, 0, n, stream});
  });
}

int kt_cuda_prepare(const void* x, int type, int rows, int k, int tiles, void* fragments,
                    void* sums, void* scales, void* stream) {
  return guarded([&] {
    launch_prepare({x, nullptr, k, nullptr, prepared(fragments, sums, scales), rows, k, tiles,
                    static_cast<uint8_t>(type), stream});
  });
}

int kt_cuda_gemv_item_bytes() { return sizeof(GemvItem); }
int kt_cuda_gemv_item(void* host_item, const void* weights, const void* block_scales,
                      int first_tile, int tiles) {
  const GemvItem item{static_cast<const uint8_t*>(weights), static_cast<const float*>(block_scales),
                      first_tile, tiles};
  std::memcpy(host_item, &item, sizeof item);
  return 0;
}

int kt_cuda_quant_gemv(const void* items, int num_items, int max_tiles, const void* fragments,
                       const void* sums, const void* scales, void* y, int n, int k, int gguf_id,
                       int layout, int sms, int arch, void* stream) {
  return guarded([&] {
    const GemvParams p{static_cast<const GemvItem*>(items),
                       nullptr,
                       prepared(fragments, sums, scales),
                       static_cast<float*>(y),
                       num_items,
                       max_tiles,
                       n,
                       k,
                       gguf_id,
                       static_cast<WeightLayout>(layout),
                       stream};
    launch_quant_gemv(p, choose_gemv_tile(p, sms, arch));
  });
}

int kt_cuda_dequantise(const void* weights, const void* block_scales, void* out, int n, int k,
                       int gguf_id, int layout, int bf16, void* stream) {
  return guarded([&] {
    launch_dequantise({static_cast<const uint8_t*>(weights),
                       static_cast<const float*>(block_scales), out, n, k, gguf_id,
                       static_cast<WeightLayout>(layout), bf16 != 0, stream});
  });
}

int kt_cuda_dense_gemm(const void* x, const void* weights, void* y, int m, int n, int k, int bf16,
                       int float_out, void* stream) {
  return guarded([&] {
    launch_dense_gemm({x, nullptr, weights, y, m, n, k, bf16 != 0, float_out != 0, stream});
  });
}

int kt_cuda_flash(const void* q, const void* k, const void* v, void* out,
                  const int32_t* first_token, const int32_t* kv_length, const int32_t* pages,
                  void* workspace, size_t* workspace_bytes, int sequences, int max_tokens,
                  int total_tokens, int heads, int kv_heads, int qk_dim, int v_dim, int max_pages,
                  int max_length, float scale, int bf16, const void* k_rope,
                  const void* k_exponents, const void* v_exponents, int sms, int arch,
                  void* stream) {
  return guarded([&] {
    const FlashParams p{q,
                        k,
                        v,
                        k_rope,
                        static_cast<const uint8_t*>(k_exponents),
                        static_cast<const uint8_t*>(v_exponents),
                        out,
                        first_token,
                        kv_length,
                        pages,
                        static_cast<float*>(workspace),
                        sequences,
                        max_tokens,
                        total_tokens,
                        heads,
                        kv_heads,
                        qk_dim,
                        v_dim,
                        max_pages,
                        scale,
                        bf16 ? AttentionType::kBf16 : AttentionType::kF16,
                        k_exponents || v_exponents ? CacheType::kFp8 : CacheType::kSame,
                        stream};
    const FlashTile tile = choose_flash_tile(p, max_length, sms, arch);
    if (workspace_bytes) *workspace_bytes = flash_workspace_bytes(p, tile);
    if (workspace || !workspace_bytes) launch_flash(p, tile);
  });
}

int kt_cuda_rms_norm(void* hidden, const void* delta, const void* weight, void* out_float,
                     void* out_16, int m, int k, float eps, int bf16, void* stream) {
  return guarded([&] {
    launch_rms_norm({static_cast<float*>(hidden), static_cast<const float*>(delta),
                     static_cast<const float*>(weight), static_cast<float*>(out_float), out_16, m,
                     k, eps, bf16 ? Out16::kBf16 : Out16::kF16, stream});
  });
}

int kt_cuda_gemv_weights(const float* values, int n, int k, int gguf_id, int r16, void* out,
                         size_t* bytes) {
  return guarded([&] {
    namespace quant = kt::quant;
    const size_t plain = quant::row_bytes(gguf_id, k) * n;
    *bytes = r16 ? quant::r16_bytes(gguf_id, plain, n) : plain;
    if (!out) return;
    std::vector<uint8_t> blocks(plain);
    quant::quantize(gguf_id, {values, size_t(n) * k}, k, {}, blocks);
    if (r16)
      quant::r16_pack(gguf_id, blocks, n, {static_cast<uint8_t*>(out), *bytes});
    else
      std::memcpy(out, blocks.data(), plain);
  });
}

int kt_cuda_record_step(const int* flags, int layers, int sample, char* text, size_t size) {
  return guarded([&] {
    std::vector<StepLayer> all;
    for (int i = 0; i < layers; ++i)
      all.push_back(
          {(flags[i] & 1) != 0, (flags[i] & 2) != 0, (flags[i] & 4) != 0, (flags[i] & 8) != 0,
           false, (flags[i] & 16) != 0});
    TextRecorder recorder;
    record_step(all, sample != 0, recorder);
    KT_CHECK(recorder.text.size() < size, "a step of ", recorder.text.size(), " characters");
    std::memcpy(text, recorder.text.c_str(), recorder.text.size() + 1);
  });
}
