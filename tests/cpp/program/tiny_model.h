// A decoder of one layer with random float weights, for tests of the program around it.
#pragma once

#include <cmath>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "program/decoder.h"
#include "quant/f32.h"

namespace kt::program {

struct TinyModel {
  static constexpr int kVocab = 37, kHidden = 32, kHeads = 4, kHeadDim = 8, kInner = 48;

  explicit TinyModel(int threads = 2, int64_t positions = 512, unsigned seed = 1)
      : context(std::make_shared<cpu::Context>(threads)), random(seed) {
    auto table = std::make_shared<std::vector<float>>(floats(kVocab * kHidden, 1.0f));
    embedding =
        std::make_shared<Embedding>(bytes(*table), table, quant::F32::kGgufId, kVocab, kHidden);
    auto rope = std::make_shared<cpu::Rope>();
    rope->inv_freq = {1.0f, 0.3f, 0.1f, 0.03f};
    cpu::GqaWeights w;
    w.q = linear(kHeads * kHeadDim, kHidden), w.k = linear(2 * kHeadDim, kHidden);
    w.v = linear(2 * kHeadDim, kHidden), w.o = linear(kHidden, kHeads * kHeadDim);
    w.rope = rope;
    w.num_heads = kHeads, w.num_kv_heads = 2, w.head_dim = kHeadDim;
    w.scale = 1.0f / std::sqrt(float{kHeadDim});
    auto attention = std::make_shared<cpu::GqaAttention>(w);
    auto mlp = std::make_shared<cpu::Mlp>(linear(kInner, kHidden), linear(kInner, kHidden),
                                          linear(kHidden, kInner));
    kv = std::make_shared<KvPool>(std::vector<cpu::KvSpec>{attention->kv_spec()},
                                  KvOptions{cpu::KvType::kF32, cpu::KvType::kF32, positions});
    nodes = {std::make_shared<AttentionNode>("attention", norm(), attention, 0),
             std::make_shared<FeedForwardNode>("mlp", norm(), mlp)};
    decoder = make_decoder(nodes);
  }

  std::shared_ptr<Decoder> make_decoder(std::vector<std::shared_ptr<const Node>> list) {
    if (!head) head = linear(kVocab, kHidden);
    return std::make_shared<Decoder>(context, embedding, std::move(list), norm(), head, kv,
                                     Arithmetic::kF32);
  }

  std::vector<float> floats(int count, float spread) {
    std::normal_distribution<float> normal(0, spread);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random);
    return values;
  }

  static std::span<const uint8_t> bytes(const std::vector<float>& values) {
    return {reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(float)};
  }

  std::shared_ptr<const cpu::Linear> linear(int rows, int cols) {
    const auto values = floats(rows * cols, 1.0f / std::sqrt(static_cast<float>(cols)));
    return std::make_shared<cpu::Linear>(
        cpu::Matrix::repack(*context, bytes(values), quant::F32::kGgufId, rows, cols, "w"),
        std::vector<float>{});
  }

  static std::shared_ptr<const cpu::RmsNorm> norm() {
    return std::make_shared<cpu::RmsNorm>(cpu::RmsNorm{std::vector<float>(kHidden, 1.0f), 1e-5f});
  }

  std::shared_ptr<cpu::Context> context;
  std::mt19937 random;
  std::shared_ptr<Embedding> embedding;
  std::shared_ptr<const cpu::Linear> head;
  std::shared_ptr<KvPool> kv;
  std::vector<std::shared_ptr<const Node>> nodes;
  std::shared_ptr<Decoder> decoder;
};

/// A step that owns its arrays.
struct OwnedStep {
  std::vector<int32_t> token, position, sequence;
  std::vector<uint8_t> is_prompt;
  std::vector<std::shared_ptr<Sequence>> sequences;
  std::vector<int32_t> logits_rows;
  bool want_hidden = false;

  /// Appends a row at the next position of sequence s, counting the rows that are here already.
  void add(int32_t id, int32_t s, bool prompt = true) {
    int64_t at = sequences[s]->length();
    for (const int32_t other : sequence) at += other == s;
    token.push_back(id);
    position.push_back(static_cast<int32_t>(at));
    sequence.push_back(s);
    is_prompt.push_back(prompt);
  }

  Step view() const {
    return {token, position, sequence, is_prompt, sequences, logits_rows, want_hidden};
  }
};

}  // namespace kt::program
