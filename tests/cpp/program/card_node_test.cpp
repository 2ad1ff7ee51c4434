// Layers on a card as the program sees them, with a card that writes down what it is given: which
// rows come together, and where their results go.
#include "program/card_node.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "program/kv_pool.h"

namespace kt::program {
namespace {

constexpr int kHidden = 4, kVocab = 3;

/// Adds 1 to every row; a row's logits are its first value, the step's number and the row's.
struct FakeCard {
  std::vector<int> rows;
  std::vector<std::vector<float>> first_values;  // of each step's rows
  std::vector<const float*> hidden;
  std::vector<std::vector<int>> is_prompt;

  static int step(void* self, const kt_cuda_step* s) {
    FakeCard& card = *static_cast<FakeCard*>(self);
    card.rows.push_back(s->rows), card.hidden.push_back(s->hidden);
    card.first_values.emplace_back();
    card.is_prompt.emplace_back(s->is_prompt, s->is_prompt + s->rows);
    for (int i = 0; i < s->rows; ++i) card.first_values.back().push_back(s->hidden[i * kHidden]);
    for (int i = 0; i < s->num_head_rows; ++i) {
      const int row = s->head_rows[i];
      float* const logits = s->logits + i * kVocab;
      logits[0] = s->hidden[row * kHidden], logits[1] = float(card.rows.size()), logits[2] = float(row);
    }
    for (int i = 0; s->hidden_out && i < s->rows * kHidden; ++i) s->hidden_out[i] = s->hidden[i] + 1;
    return 0;
  }
};

struct Scene {
  FakeCard card;
  cpu::Context context{1};
  std::shared_ptr<KvPool> kv = std::make_shared<KvPool>(
      std::vector<cpu::KvSpec>{cpu::KvSpec{}}, KvOptions{cpu::KvType::kF32, cpu::KvType::kF32, 512});
  std::vector<float> hidden, logits;

  void run(std::vector<int32_t> sequence, std::vector<int32_t> wanted, int sequences, int most_rows,
           std::vector<uint8_t> is_prompt = {}) {
    const int m = static_cast<int>(sequence.size());
    std::vector<std::shared_ptr<Sequence>> all;
    for (int i = 0; i < sequences; ++i) all.push_back(kv->make_sequence());
    std::vector<int32_t> position(m), next(sequences, 0), token(m, 0);
    is_prompt.resize(m, 1);
    for (int i = 0; i < m; ++i) position[i] = next[sequence[i]]++;
    for (int i = 0; i < m; ++i) hidden.insert(hidden.end(), kHidden, float(10 * i));
    const Step step{token, position, sequence, is_prompt, all, wanted, true};
    const std::vector<cpu::Rounding> rounding(m, cpu::Rounding::kFloat);
    std::vector<int32_t> tokens;
    StepState state{context, step, rounding.data(), nullptr, kv.get(), nullptr, m, hidden.data(), &logits,
                    &tokens};
    CardModel model;
    model.model = &card, model.step = FakeCard::step;
    CardOptions options;
    options.device = "cuda:0", options.rows = most_rows, options.sequences = 8;
    options.vocab = kVocab;
    CardNode("layers", model, options, {}, kHidden).run(state);
  }
};

TEST(CardNode, APromptsRowsAreReadWhereTheyAre) {
  Scene scene;
  scene.run({0, 0, 0, 0, 0}, {4}, 1, 3);
  EXPECT_EQ(scene.card.rows, (std::vector<int>{3, 2}));
  EXPECT_EQ(scene.card.hidden[0], scene.hidden.data());
  EXPECT_EQ(scene.card.hidden[1], scene.hidden.data() + 3 * kHidden);
  for (int i = 0; i < 5 * kHidden; ++i) EXPECT_EQ(scene.hidden[i], 10 * (i / kHidden) + 1);
  EXPECT_EQ(scene.logits, (std::vector<float>{40, 2, 1}));
}

TEST(CardNode, RowsGoBySequenceAndTheirResultsBack) {
  Scene scene;
  scene.run({1, 0, 1, 0}, {3, 0, 3}, 2, 8);
  EXPECT_EQ(scene.card.first_values, (std::vector<std::vector<float>>{{10, 30, 0, 20}}));
  for (int i = 0; i < 4 * kHidden; ++i) EXPECT_EQ(scene.hidden[i], 10 * (i / kHidden) + 1);
  // In the order of the wanted rows, one of them twice.
  EXPECT_EQ(scene.logits, (std::vector<float>{30, 1, 1, 0, 1, 2, 30, 1, 1}));
}

TEST(CardNode, TheCardIsToldWhichRowsAreAPrompts) {
  Scene scene;
  scene.run({1, 0, 1, 0}, {3}, 2, 8, {1, 0, 2, 0});  // by sequence on the card; 2: of a long one
  EXPECT_EQ(scene.card.is_prompt, (std::vector<std::vector<int>>{{0, 0, 1, 1}}));
}

TEST(CardNode, NoStepHasMoreRowsWithLogitsThanTheCardTakes) {
  Scene scene;
  std::vector<int32_t> all(70);
  for (int i = 0; i < 70; ++i) all[i] = i;
  scene.run(std::vector<int32_t>(70, 0), all, 1, 100);
  EXPECT_EQ(scene.card.rows, (std::vector<int>{KT_CUDA_MOST_HEAD_ROWS, 70 - KT_CUDA_MOST_HEAD_ROWS}));
  for (int i = 0; i < 70; ++i) EXPECT_EQ(scene.logits[i * kVocab], 10 * i);
}

}  // namespace
}  // namespace kt::program
