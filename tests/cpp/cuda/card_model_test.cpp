// A whole decoder of the DeepSeek-V3 kind in the way it runs on a card, emulated, against the CPU's
// decoder on the same weights: attention, dense layer, router, shared expert, experts on the CPU
// and in slots, head; several tokens, two sequences.
#include "cuda/model/card_model.h"

#include "cuda/model/crossover.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>

#include "../../../bench/cuda/v3_width.h"
#include "base/half.h"
#include "buffer.h"
#include "cuda/int4_gemm/placed.h"
#if defined(KT_TEST_ON_GPU)
#include "cuda/common/cuda_error.h"
#endif
#include "cpu/ops/ffn.h"
#include "program/decoder.h"
#include "quant/convert.h"
#include "quant/formats.h"
#include "quant/quantize.h"

namespace kt::cuda {
namespace {

constexpr int kHidden = 256, kHeads = 4, kQLora = 256, kKvLora = 256, kNope = 64, kRope = 32;
constexpr int kValue = 64, kInner = 256, kExperts = 8, kTopK = 3, kVocab = 64;
constexpr int kBatch = 2, kPages = 6;

/// Buffers that live as long as the model.
class TestMemory : public Memory {
 public:
  void* device(size_t bytes) override {
    buffers_.push_back(std::make_unique<Buffer<uint8_t>>(bytes));
    return buffers_.back()->data();
  }
  void* mapped(size_t bytes) override {
    buffers_.push_back(std::make_unique<Buffer<uint8_t>>(std::vector<uint8_t>(bytes, 0)));
    return buffers_.back()->data();
  }
  void upload(void* to, const void* from, size_t bytes) override {
    std::memcpy(to, from, bytes);
#if !defined(KT_TEST_ON_GPU)
    for (auto& buffer : buffers_)
      if (buffer->data() == to) buffer->raw().mark_written(0, bytes);
#endif
  }
  std::string pin(const void*, size_t) override { return "pinned by nobody"; }
  void unpin(const void*) noexcept override {}
  size_t prepare_copies(bool) override { return 0; }
  void bring(const std::vector<Transfer>& pieces, int) override {
    for (const Transfer& piece : pieces) upload(piece.to, piece.from, piece.bytes);
  }
  void arrived(int, void*) override {}
  void release(int, void*) override {}
  void finish_copies() noexcept override {}
  void finish(void*) override {
#if defined(KT_TEST_ON_GPU)
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
#endif
  }
  void copy(void* to, const void* from, size_t bytes) override { upload(to, from, bytes); }

 private:
  std::vector<std::unique_ptr<Buffer<uint8_t>>> buffers_;
};

/// The same random weights for both sides.
class Weights {
 public:
  /// Linears in int4 on the card, and with their values on the CPU.
  explicit Weights(Memory& memory, bool int4 = false)
      : context(std::make_shared<cpu::Context>(2)), memory_(memory), int4_(int4) {}

  struct Pair {
    std::shared_ptr<const cpu::Linear> linear;
    std::vector<uint8_t> blocks;
    std::vector<float> values;
    int n, k, gguf_id;
    CudaMatrix placed;  // in int4
  };

  std::vector<float> floats(size_t count, float spread, float middle = 0) {
    std::normal_distribution<float> normal(middle, spread);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random_);
    return values;
  }

  /// A quantised matrix of rows with unit gain.
  Pair matrix(int n, int k, int gguf_id) {
    Pair p{nullptr, {}, floats(size_t(n) * k, 1 / std::sqrt(float(k))), n, k, gguf_id, {}};
    p.blocks.resize(quant::row_bytes(gguf_id, k) * n);
    quant::quantize(gguf_id, p.values, k, {}, p.blocks);
    quant::dequantize(gguf_id, p.blocks, p.values);
    p.linear = std::make_shared<cpu::Linear>(
        cpu::Matrix::repack(*context, p.blocks, gguf_id, n, k, "w"), std::vector<float>{});
    return p;
  }

  /// A linear's matrix.
  Pair linear(int n, int k, int gguf_id) {
    const Pair p = matrix(n, k, gguf_id);
    return int4_ ? in_int4(p) : p;
  }
  Pair in_int4(Pair p) {
    const int n = p.n, k = p.k, gguf_id = p.gguf_id;
    const ConvertedInt4 made = convert_int4(p.blocks, gguf_id, n, k, 0, 1);
    PackedInt4 packed{n, k, made.matrix.group, FloatType::kF16, {}, {}, {}};
    const uint8_t* const at = made.bytes.data();
    packed.weights.assign(at, at + made.matrix.weight_bytes());
    const auto* scales = reinterpret_cast<const uint16_t*>(at + made.matrix.weight_bytes());
    const size_t count = made.matrix.scale_bytes() / 2;
    packed.scales.assign(scales, scales + count);
    if (made.matrix.has_offsets) packed.offsets.assign(scales + count, scales + 2 * count);
    const Int4Matrix exact = unpack_int4(packed);
    for (int row = 0; row < n; ++row)
      for (int i = 0; i < k; ++i) p.values[size_t(row) * k + i] = exact.value(row, i);
    const std::span bytes(reinterpret_cast<const uint8_t*>(p.values.data()), p.values.size() * 4);
    p.linear = std::make_shared<cpu::Linear>(
        cpu::Matrix::repack(*context, bytes, quant::F32::kGgufId, n, k, "w"), std::vector<float>{});
    p.placed = {memory_.put(made.bytes), n, k, made.matrix.type()};
    return p;
  }
  /// Linears of one k and format, below one another where they can.
  std::vector<CudaMatrix> linears(const std::vector<const Pair*>& parts) {
    if (!int4_) return {on_card(parts)};
    std::vector<CudaMatrix> found;
    for (const Pair* part : parts) found.push_back(part->placed ? part->placed : on_card({part}));
    return found;
  }

  /// Matrices of one k and format below one another, on the card.
  CudaMatrix on_card(const std::vector<const Pair*>& parts) {
    std::vector<uint8_t> records;
    CudaMatrix m{nullptr, 0, parts[0]->k, parts[0]->gguf_id};
    for (const Pair* part : parts) {
      const size_t begin = records.size();
      const size_t bytes = quant::r16_bytes(m.gguf_id, part->blocks.size(), part->n);
      records.resize(begin + bytes);
      quant::r16_pack(m.gguf_id, part->blocks, part->n, std::span(records).subspan(begin));
      m.n += part->n;
    }
    m.weights = memory_.put(records);
    return m;
  }

  std::shared_ptr<const cpu::RmsNorm> norm(int n, const float*& on_card) {
    const std::vector<float> weight = floats(n, 0.2f, 1);
    on_card = memory_.put(weight);
    return std::make_shared<cpu::RmsNorm>(cpu::RmsNorm{weight, 1e-6f});
  }

  half_t* halves(const std::vector<float>& values) {
    std::vector<half_t> rounded;
    for (float v : values) rounded.push_back({float_to_half(v)});
    return memory_.put(rounded);
  }

  std::shared_ptr<cpu::Context> context;

 private:
  Memory& memory_;
  bool int4_;
  std::mt19937 random_{11};
};

/// Operations as they come, jobs as they are posted: what a graph does, in one order of it.
class Eagerly : public StepRecorder {
 public:
  Eagerly(CardModel& model, const StepSize& size, std::function<void(uint64_t)> job)
      : model_(model), size_(size), job_(std::move(job)) {}
  void run(StepStream, StepOp op, int layer) override { model_.launch(nullptr, op, layer, size_); }
  void order(StepStream, StepStream) override {}
  void post(uint64_t job) override {
#if defined(KT_TEST_ON_GPU)
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
#endif
    job_(job);
  }
  void await(uint64_t) override {}

 private:
  CardModel& model_;
  StepSize size_;
  std::function<void(uint64_t)> job_;
};

struct Scene {
  TestMemory memory;
  Weights weights;
  std::unique_ptr<CardModel> model;
  std::vector<std::shared_ptr<const cpu::Experts>> experts;  // of the job with this number - 1
  std::shared_ptr<program::Decoder> decoder;
  std::shared_ptr<program::KvPool> kv;
  std::vector<float> table;
  bool int4_experts;

  /// resident: experts of the MoE layer with a slot. on_cpu: whether the CPU computes at all.
  /// int4: what the linears are on the card; of those that read one input not all.
  /// int4_experts: those with a slot are, too.
  Scene(const std::vector<int>& resident, bool on_cpu, bool int4 = false, int arch = 90,
        bool int4_experts = false)
      : weights(memory, int4), int4_experts(int4_experts) {
    CardShape s;
    s.rows = s.sequences = kBatch, s.hidden = kHidden, s.heads = kHeads;
    s.q_lora = kQLora, s.kv_lora = kKvLora;
    s.nope = kNope, s.rope = kRope, s.v = kValue, s.experts = kExperts, s.top_k = kTopK;
    s.expert_inner = kInner, s.vocab = kVocab, s.pages = kPages, s.max_pages = 3;
    s.scale = 1 / std::sqrt(float{kNope + kRope}), s.sms = 3, s.arch = arch;
    s.n_group = 4, s.topk_group = 2, s.sigmoid = s.group_sum_of_two = s.norm_topk_prob = true;
    s.routed_scaling_factor = 2.5f;
    auto rope = std::make_shared<cpu::Rope>();
    rope->interleaved = true;
    for (int i = 0; i < kRope / 2; ++i) rope->inv_freq.push_back(std::pow(100.0f, -i / 16.0f));

    std::vector<CardLayer> layers(2);
    std::vector<cpu::KvSpec> specs;
    std::vector<std::shared_ptr<const program::Node>> nodes;
    for (int i = 0; i < 2; ++i) {
      nodes.push_back(attention(layers[i], rope, i, specs));
      nodes.push_back(i == 0 ? dense(layers[i]) : moe(layers[i], s, resident, on_cpu));
    }
    const float* final_norm;
    const auto norm = weights.norm(kHidden, final_norm);
    const auto head = weights.linear(kVocab, kHidden, quant::Q8_0::kGgufId);
    table = weights.floats(kVocab * kHidden, 1);
    auto keep = std::make_shared<std::vector<float>>(table);
    auto embedding = std::make_shared<program::Embedding>(
        std::span(reinterpret_cast<const uint8_t*>(keep->data()), keep->size() * 4), keep,
        quant::F32::kGgufId, kVocab, kHidden);
    kv = std::make_shared<program::KvPool>(
        specs, program::KvOptions{cpu::KvType::kF32, cpu::KvType::kF32, 512});
    decoder = std::make_shared<program::Decoder>(weights.context, embedding, nodes, norm,
                                                 head.linear, kv, program::Arithmetic::kF32);
    model = std::make_unique<CardModel>(s, layers, final_norm, weights.linears({&head})[0],
                                          memory.put(rope->inv_freq), memory);
  }

  std::shared_ptr<const program::Node> attention(CardLayer& w,
                                                 const std::shared_ptr<const cpu::Rope>& rope,
                                                 int index, std::vector<cpu::KvSpec>& specs) {
    const int q4 = quant::Q4_K::kGgufId, head = kNope + kRope;
    const auto q_a = weights.linear(kQLora, kHidden, q4);
    const auto kv_a = weights.matrix(kKvLora + kRope, kHidden, q4);
    const auto q_b = weights.linear(kHeads * head, kQLora, quant::Q6_K::kGgufId);
    const auto kv_b = weights.matrix(kHeads * (kNope + kValue), kKvLora, quant::Q8_0::kGgufId);
    const auto o = weights.linear(kHidden, kHeads * kValue, q4);
    const auto norm = weights.norm(kHidden, w.attention_norm);
    cpu::MlaWeights m;
    m.q_a = q_a.linear, m.q_b = q_b.linear, m.kv_a = kv_a.linear, m.kv_b = kv_b.linear;
    m.o = o.linear, m.rope = rope;
    m.q_a_norm = weights.norm(kQLora, w.q_norm), m.kv_a_norm = weights.norm(kKvLora, w.kv_norm);
    m.num_heads = kHeads, m.kv_lora_rank = kKvLora, m.qk_nope_head_dim = kNope;
    m.qk_rope_head_dim = kRope, m.v_head_dim = kValue;
    m.scale = 1 / std::sqrt(float{kNope + kRope});
    w.qkv = weights.linears({&q_a, &kv_a}), w.q_b = weights.linears({&q_b})[0];
    w.o = weights.linears({&o})[0];
    // kv_b: per head nope rows of keys, then v rows of values, each over the latent.
    std::vector<float> k_b, v_b;
    for (int h = 0; h < kHeads; ++h) {
      const float* rows = kv_b.values.data() + size_t(h) * (kNope + kValue) * kKvLora;
      for (int n = 0; n < kKvLora; ++n)
        for (int k = 0; k < kNope; ++k) k_b.push_back(rows[k * kKvLora + n]);
      v_b.insert(v_b.end(), rows + kNope * kKvLora, rows + (kNope + kValue) * kKvLora);
    }
    w.k_b = weights.halves(k_b), w.v_b = weights.halves(v_b);
    auto twin = std::make_shared<cpu::MlaAttention>(m);
    specs.push_back(twin->kv_spec());
    return std::make_shared<program::AttentionNode>("attention", norm, twin, index);
  }

  std::shared_ptr<cpu::Mlp> mlp(CardLayer& w) {
    const auto gate = weights.linear(kInner, kHidden, quant::Q4_K::kGgufId);
    const auto up = weights.linear(kInner, kHidden, quant::Q4_K::kGgufId);
    const auto down = weights.linear(kHidden, kInner, quant::Q6_K::kGgufId);
    w.gate_up = weights.linears({&gate, &up}), w.down = weights.linears({&down})[0];
    return std::make_shared<cpu::Mlp>(gate.linear, up.linear, down.linear);
  }

  std::shared_ptr<const program::Node> dense(CardLayer& w) {
    const auto norm = weights.norm(kHidden, w.ffn_norm);
    return std::make_shared<program::FeedForwardNode>("mlp", norm, mlp(w));
  }

  std::shared_ptr<const program::Node> moe(CardLayer& w, const CardShape& s,
                                           const std::vector<int>& resident, bool on_cpu) {
    const auto norm = weights.norm(kHidden, w.ffn_norm);
    w.ffn = Ffn::kRouted, w.cpu_experts = on_cpu;
    const auto router = weights.matrix(kExperts, kHidden, quant::F32::kGgufId);
    w.router = memory.put(router.values);
    cpu::RouterOptions options{kTopK,
                               s.sigmoid,
                               weights.floats(kExperts, 0.1f),
                               s.n_group,
                               s.topk_group,
                               s.group_sum_of_two,
                               s.norm_topk_prob,
                               s.routed_scaling_factor};
    w.router_bias = memory.put(options.bias);
    std::vector<cpu::ExpertEntry> entries;
    std::vector<ExpertSlot> slots(kExperts, ExpertSlot{nullptr, nullptr, nullptr});
    for (int e = 0; e < kExperts; ++e) {
      const bool has_slot = std::find(resident.begin(), resident.end(), e) != resident.end();
      const auto expert = [&](int n, int k, int gguf_id) {
        const auto file = weights.matrix(n, k, gguf_id);
        return has_slot && int4_experts ? weights.in_int4(file) : file;
      };
      const auto gate = expert(kInner, kHidden, quant::Q4_K::kGgufId);
      const auto up = expert(kInner, kHidden, quant::Q4_K::kGgufId);
      const auto down = expert(kHidden, kInner, quant::Q6_K::kGgufId);
      const auto matrix = [](const Weights::Pair& p) {
        return std::shared_ptr<const cpu::Matrix>(p.linear, &p.linear->weight());
      };
      entries.push_back({cpu::Where::kRam, true, matrix(gate), matrix(up), matrix(down)});
      if (!has_slot) continue;
      const auto on_card = [&](const Weights::Pair& p) {
        return p.placed ? p.placed : weights.on_card({&p});
      };
      w.slot_experts = {on_card(gate), on_card(up), on_card(down)};
      slots[e] = {w.slot_experts.gate.weights, w.slot_experts.up.weights, w.slot_experts.down.weights};
    }
    if (!resident.empty()) w.slots = memory.put(slots);
    auto all = std::make_shared<cpu::Experts>(entries);
    experts.push_back(all);
    return std::make_shared<program::FeedForwardNode>(
        "moe", norm,
        std::make_shared<cpu::MoeBlock>(std::make_shared<cpu::Router>(router.linear, options), all,
                                        mlp(w), nullptr));
  }

  void cpu_job(uint64_t job) {
    const kt_cuda_job& host = model->host_job();
    const std::vector<cpu::Rounding> rounding(kBatch, cpu::Rounding::kFloat);
    experts[job - 1]->forward(*weights.context, host.x, kBatch, kTopK, host.ids, host.weights,
                              rounding.data(), host.out);
  }

  std::vector<float> card_step(const std::vector<int32_t>& tokens, int position) {
    std::vector<float> embeddings;
    for (int32_t token : tokens)
      embeddings.insert(embeddings.end(), table.begin() + token * kHidden,
                        table.begin() + (token + 1) * kHidden);
    // The second sequence's pages stand the other way round.
    const std::vector<int32_t> positions(kBatch, position);
    const StepSize size =
        model->begin_step(embeddings.data(), positions.data(), {{0, 2, 4}, {5, 3, 1}});
    Eagerly recorder(*model, size, [&](uint64_t job) { cpu_job(job); });
    record_step(model->step_layers(size), false, recorder);
#if defined(KT_TEST_ON_GPU)
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
#endif
    return {model->logits(), model->logits() + kBatch * kVocab};
  }
};

void check_steps(Scene& scene, int steps) {
  const auto a = scene.kv->make_sequence(), b = scene.kv->make_sequence();
  for (int position = 0; position < steps; ++position) {
    const std::vector<int32_t> tokens{(7 * position + 3) % kVocab, (5 * position + 9) % kVocab};
    program::Step step;
    const std::vector<int32_t> positions(kBatch, position), sequence{0, 1}, rows{0, 1};
    const std::vector<uint8_t> is_prompt{0, 0};
    const std::vector<std::shared_ptr<program::Sequence>> sequences{a, b};
    step = {tokens, positions, sequence, is_prompt, sequences, rows, false};
    program::StepOut out;
    scene.decoder->step(step, out);
    const std::vector<float> got = scene.card_step(tokens, position);
    double squared = 0, whole = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      squared += (double(got[i]) - out.logits[i]) * (double(got[i]) - out.logits[i]);
      whole += double(out.logits[i]) * out.logits[i];
    }
    ASSERT_LE(squared / whole, 5e-5) << "position " << position;
  }
}

TEST(CardModel, AgreesWithTheCpusDecoder) {
  Scene scene({1, 2, 5}, true);  // some experts in slots, the others the CPU's
  check_steps(scene, 2);
}

TEST(CardModel, AgreesWithTheCpusDecoderOnInt4Linears) {
  Scene scene({1, 2, 5}, true, true);
  check_steps(scene, 2);
}

TEST(CardModel, AgreesWithTheCpusDecoderOnExpertsInInt4) {
  Scene scene({1, 2, 5}, true, false, 90, true);  // the CPU's keep the file's type
  check_steps(scene, 2);
  Scene all({0, 1, 2, 3, 4, 5, 6, 7}, false, true, 90, true);
  check_steps(all, 1);
}

TEST(CardModel, AgreesWithTheCpusDecoderOnTuring) {
  for (const bool int4 : {false, true}) {
    emulated::options().arch = 75;
    Scene scene({1, 2, 5}, true, int4, 75, int4);
    check_steps(scene, 1);
    emulated::options() = {};
  }
}

TEST(CardModel, RunsWithoutSlotsAndWithoutTheCpu) {
  Scene none({}, true);
  check_steps(none, 1);
  Scene all({0, 1, 2, 3, 4, 5, 6, 7}, false);
  check_steps(all, 1);
}

void check_benchmarks_model(int int4) {
  TestMemory memory;
  cpu::Context context(2);
  bench::V3Options options;
  options.narrow = true, options.moe_layers = 1, options.experts = 12, options.batch = 2;
  options.context = 64, options.vocab = 64, options.int4 = int4;
  const bench::V3 v3 = bench::V3Maker(memory, context).make(options, 3, 90);
  CardModel model(v3.shape, v3.layers, v3.final_norm, v3.head, v3.inv_freq, memory);
  bench::ExpertJob job{&model, &v3, &context};
  std::mt19937 random(9);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> embeddings(2 * v3.shape.hidden);
  for (float& v : embeddings) v = normal(random);
  const std::vector<int32_t> positions{0, 0};
  const StepSize size = model.begin_step(embeddings.data(), positions.data(), {{0, 1}, {3, 2}});
  Eagerly recorder(model, size, [&](uint64_t number) { job.run(int(number) - 1); });
  record_step(model.step_layers(size), false, recorder);
#if defined(KT_TEST_ON_GPU)
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
#endif
  for (int i = 0; i < 2 * options.vocab; ++i) ASSERT_TRUE(std::isfinite(model.logits()[i])) << i;
  // Two tokens meet 8 to 12 of 12 experts, each of 256 x 256 in Q4_K, Q4_K and Q6_K.
  const size_t one = 256 * (144 + 144 + 210);
  EXPECT_EQ(v3.expert_bytes, one);
  EXPECT_EQ(job.bytes % one, 0u);
  EXPECT_GE(job.bytes / one, 8u);
  EXPECT_LE(job.bytes / one, 12u);
}

TEST(CardModel, TheBenchmarksModelRunsAndItsExpertBytesAreCounted) {
  check_benchmarks_model(-1);
  check_benchmarks_model(0);
  check_benchmarks_model(128);
}

TEST(CardModel, ARowDoesNotDependOnHowManyOthersThereAre) {
  bench::V3Options options;
  options.narrow = true, options.moe_layers = 1, options.experts = 12, options.context = 64;
  options.vocab = 64;
  constexpr int kRows = 9;  // two tiles of 8
  std::mt19937 random(10);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> embeddings(kRows * 256);
  for (float& v : embeddings) v = normal(random);
  const auto logits = [&](int first, int rows) {
    TestMemory memory;
    cpu::Context context(2);
    options.batch = rows;
    const bench::V3 v3 = bench::V3Maker(memory, context).make(options, 3, 90);
    CardModel model(v3.shape, v3.layers, v3.final_norm, v3.head, v3.inv_freq, memory);
    bench::ExpertJob job{&model, &v3, &context};
    std::vector<std::vector<int32_t>> pages;
    for (int i = 0; i < rows; ++i) pages.push_back({i});
    const std::vector<int32_t> positions(rows, 0);
    const StepSize size =
        model.begin_step(embeddings.data() + first * 256, positions.data(), pages);
    Eagerly recorder(model, size, [&](uint64_t number) { job.run(int(number) - 1); });
    record_step(model.step_layers(size), false, recorder);
#if defined(KT_TEST_ON_GPU)
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
#endif
    return std::vector<float>(model.logits(), model.logits() + rows * options.vocab);
  };
  const std::vector<float> together = logits(0, kRows);
  for (const int row : {0, 7, 8}) {
    const std::vector<float> alone = logits(row, 1);
    for (int i = 0; i < options.vocab; ++i)
      ASSERT_NEAR(together[row * options.vocab + i], alone[i], 2e-3) << "row " << row;
  }
}

/// A model whose first MoE layer can defer to its second one.
struct TwoMoeLayers {
  static constexpr int kWidth = 256;
  TestMemory memory;
  cpu::Context context{2};
  bench::V3 v3;
  std::unique_ptr<CardModel> model;
  std::vector<float> embeddings;

  TwoMoeLayers(int rows, int slice, int deferred) : embeddings(size_t(rows) * kWidth) {
    bench::V3Options options;
    options.narrow = true, options.moe_layers = 2, options.experts = 12, options.context = 64;
    options.vocab = 64, options.batch = rows;
    v3 = bench::V3Maker(memory, context).make(options, 3, 90);
    v3.shape.slice = slice, v3.shape.deferred = deferred;
    v3.shape.sequences = std::min(rows, slice);
    model = std::make_unique<CardModel>(v3.shape, v3.layers, v3.final_norm, v3.head, v3.inv_freq,
                                        memory);
    std::mt19937 random(12);
    std::normal_distribution<float> normal(0, 1);
    for (float& v : embeddings) v = normal(random);
  }
};

TEST(CardModel, OnlyGraphsDefer) {
  TwoMoeLayers two(17, 17, 1);
  const auto defers = [&](int rows, int padded) {
    std::vector<int32_t> numbers(rows), positions(rows, 0), counts(rows, 1);
    std::vector<const int32_t*> tables(rows);
    for (int i = 0; i < rows; ++i) numbers[i] = i, tables[i] = &numbers[i];
    kt_cuda_step step{};
    step.rows = step.sequences = rows, step.hidden = two.embeddings.data();
    step.position = positions.data(), step.sequence = numbers.data();
    step.pages = tables.data(), step.num_pages = counts.data();
    step.num_head_rows = rows, step.head_rows = numbers.data();
    const StepSize size = two.model->begin_step(step, padded);
    EXPECT_EQ(size.graph, size.defers);
    return size.defers;
  };
  EXPECT_TRUE(defers(16, 16));
  EXPECT_TRUE(defers(5, 8));
  EXPECT_TRUE(defers(1, 1));
  EXPECT_FALSE(defers(17, 17));
  EXPECT_FALSE(defers(1, 0));  // the last row of a longer step
}

TEST(CardModel, RowsOfAPromptNeverDefer) {
  constexpr int kRows = 3, kDeferred = 2;
  TwoMoeLayers two(kRows, kRows, kDeferred);
  std::vector<int32_t> numbers{0, 1, 2}, positions(kRows, 0), pages(kRows, 1);
  std::vector<const int32_t*> tables;
  for (const int32_t& number : numbers) tables.push_back(&number);
  const std::vector<uint8_t> is_prompt{0, 1, 0};
  kt_cuda_step step{};
  step.rows = step.sequences = kRows, step.hidden = two.embeddings.data();
  step.position = positions.data(), step.sequence = numbers.data();
  step.pages = tables.data(), step.num_pages = pages.data();
  step.num_head_rows = kRows, step.head_rows = numbers.data();
  const int k = two.v3.shape.top_k;
  const auto run = [&](int rows, const uint8_t* marks) {
    std::vector<std::vector<int>> counts(2, std::vector<int>(kRows, 0));
    step.rows = step.sequences = step.num_head_rows = rows, step.is_prompt = marks;
    const StepSize size = two.model->begin_step(step, rows);
    EXPECT_TRUE(size.defers);
    Eagerly recorder(*two.model, size, [&](uint64_t number) {
      const int job = static_cast<int>(number) - 1;
      const kt_cuda_job& data = two.model->host_job(job);
      for (int i = 0; i < data.rows * k; ++i) counts[job >= 2][i / k] += data.ids[i] >= 0;
      std::fill_n(data.out, data.rows * TwoMoeLayers::kWidth, 0.f);
    });
    record_step(two.model->step_layers(size), false, recorder);
#if defined(KT_TEST_ON_GPU)
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
#endif
    return counts;
  };
  // Experts computed at once in the two layers together, and later in the first.
  using Counts = std::vector<std::vector<int>>;
  EXPECT_EQ(run(3, is_prompt.data()), (Counts{{2 * k - kDeferred, 2 * k, 2 * k - kDeferred},
                                              {kDeferred, 0, kDeferred}}));
  EXPECT_EQ(run(1, is_prompt.data() + 1), (Counts{{2 * k, 0, 0}, {0, 0, 0}}));
  EXPECT_EQ(run(1, nullptr), (Counts{{2 * k - kDeferred, 0, 0}, {kDeferred, 0, 0}}));
}

TEST(CardModel, JobsOfASliceSayWhichRowsTheyHave) {
  constexpr int kRows = 9, kSlice = 4;
  TwoMoeLayers two(kRows, kSlice, 0);
  std::vector<int32_t> positions(kRows), sequence(kRows, 0);
  for (int i = 0; i < kRows; ++i) positions[i] = i;
  const int32_t page = 0, count = 1, last = kRows - 1;
  const int32_t* const table = &page;
  kt_cuda_step step{};
  step.rows = kRows, step.sequences = 1, step.hidden = two.embeddings.data();
  step.position = positions.data(), step.sequence = sequence.data();
  step.pages = &table, step.num_pages = &count;
  step.num_head_rows = 1, step.head_rows = &last;
  bench::ExpertJob experts{two.model.get(), &two.v3, &two.context};
  std::vector<std::pair<int, int>> seen;  // first row and rows of every job
  for (int first = 0; first < kRows; first += kSlice) {
    const PartOfStep part(step, first, std::min(kSlice, kRows - first), TwoMoeLayers::kWidth, 64);
    const StepSize size = two.model->begin_step(part.step, 0, first);
    Eagerly recorder(*two.model, size, [&](uint64_t number) {
      const kt_cuda_job& data = two.model->host_job(int(number) - 1);
      seen.push_back({data.first_row, data.rows});
      experts.run(int(number) - 1);
    });
    record_step(two.model->step_layers(size), false, recorder);
#if defined(KT_TEST_ON_GPU)
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
#endif
  }
  const std::vector<std::pair<int, int>> expected{{0, 4}, {0, 4}, {4, 4}, {4, 4}, {8, 1}, {8, 1}};
  EXPECT_EQ(seen, expected);
}

TEST(Crossover, LearnsFromStepsWhichWayIsShorter) {
  Crossover learns(0);
  const auto step = [&](int rows, double cpu_per_row, double stream) {
    const bool streamed = learns.streams(rows);
    learns.took(rows, streamed, streamed ? stream : cpu_per_row * rows);
    return streamed;
  };
  EXPECT_FALSE(step(100, 1, 1));  // too short to think of it
  EXPECT_TRUE(step(512, 0.01, 9));   // loads kernels: not counted
  EXPECT_TRUE(step(512, 0.01, 2));   // 2 s
  EXPECT_FALSE(step(512, 0.01, 2));  // 5.12 s: tried once
  EXPECT_TRUE(step(512, 0.01, 2));
  EXPECT_TRUE(step(150, 0.01, 2));   // 1.5 s against 0.6 s, if its time goes with the rows
  EXPECT_FALSE(step(150, 0.01, 2));  // it does not
  EXPECT_TRUE(step(256, 0.01, 2));
  EXPECT_TRUE(step(8192, 0.01, 30));  // a size that was never tried: 82 s against 2 s
  EXPECT_TRUE(step(8192, 0.01, 30));
  EXPECT_TRUE(step(512, 0.01, 2));  // short ones are still judged by their own
  Crossover told(64);
  EXPECT_FALSE(told.streams(63));
  EXPECT_TRUE(told.streams(64));
}

TEST(CardModel, ALimitOnTheCardsMemoryIsKeptAndNamed) {
  TestMemory memory;
  LimitedMemory limited(memory, 1000);
  limited.device(600);
  try {
    limited.device(401);
    FAIL() << "more than the limit";
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("401 bytes more: 600 of 1000"), std::string::npos) << text;
  }
  limited.device(400);
  EXPECT_EQ(limited.taken(), 1000u);
}

TEST(CardModel, RoomIsSharedByThoseWhoCanUseIt) {
  using Shares = std::vector<size_t>;
  EXPECT_EQ(share_out(90, {100, 10, 100}), (Shares{40, 10, 40}));
  EXPECT_EQ(share_out(90, {20, 10, 30}), (Shares{20, 10, 30}));
  EXPECT_EQ(share_out(0, {20, 10}), (Shares{0, 0}));
  EXPECT_EQ(share_out(7, {}), Shares{});
  EXPECT_EQ(usable_room(800), 700u);
  EXPECT_EQ(usable_room(size_t{80} << 30), size_t{79} << 30);
}

TEST(CardModel, TheDriversPartIsTakenOnceHoweverManyShare) {
  TestMemory memory;
  LimitedMemory limited(memory, 8000);
  limited.device(800);
  EXPECT_EQ(limited.shared_room(), 7200u - 900);
  limited.device(4000);
  EXPECT_EQ(limited.shared_room(), 3200u - 900);
  limited.device(3000);
  EXPECT_EQ(limited.shared_room(), 0u);
}

TEST(CardModel, RefusesWhatDoesNotFit) {
  Scene scene({}, true);
  const std::vector<float> embeddings(kBatch * kHidden);
  const std::vector<int32_t> far{64, 200}, near{0, 0};
  EXPECT_THROW(scene.model->begin_step(embeddings.data(), far.data(), {{0, 1}, {2, 3}}),
               InvalidArgument);
  EXPECT_THROW(scene.model->begin_step(embeddings.data(), near.data(), {{0}}), InvalidArgument);
}

}  // namespace
}  // namespace kt::cuda
