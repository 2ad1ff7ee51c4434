// Decoder::step as a contract: what it refuses, that a refusal or a failure leaves every sequence
// as it was, and that generate() ends when it is told to.
#include "program/decoder.h"

#include <gtest/gtest.h>

#include <functional>
#include <stdexcept>
#include <string>

#include "base/error.h"
#include "program/sampling.h"
#include "tiny_model.h"

namespace kt::program {
namespace {

// Two sequences of 5 and 70 positions, and a step that is right: a chunk for one, a token for the
// other.
struct Scene {
  TinyModel model;
  std::shared_ptr<Sequence> a = model.kv->make_sequence(), b = model.kv->make_sequence();

  Scene() {
    for (const auto& [sequence, count] : {std::pair{a, 5}, {b, 70}}) {
      OwnedStep step;
      step.sequences = {sequence};
      for (int i = 0; i < count; ++i) step.add(i % TinyModel::kVocab, 0);
      StepOut out;
      model.decoder->step(step.view(), out);
    }
  }

  OwnedStep good() const {
    OwnedStep step;
    step.sequences = {a, b};
    for (const int32_t token : {3, 1, 4}) step.add(token, 0);
    step.add(5, 1, false);
    step.logits_rows = {2, 3};
    return step;
  }
};

struct Bad {
  const char* name;
  const char* message;  // part of it
  std::function<void(Scene&, OwnedStep&)> change;
};

class BadStep : public ::testing::TestWithParam<Bad> {};

INSTANTIATE_TEST_SUITE_P(
    All, BadStep,
    ::testing::Values(
        Bad{"no_rows", "no rows",
            [](Scene&, OwnedStep& s) {
              s.token.clear(), s.position.clear(), s.sequence.clear(), s.is_prompt.clear();
            }},
        Bad{"short_positions", "3 positions", [](Scene&, OwnedStep& s) { s.position.pop_back(); }},
        Bad{"short_sequences", "3 sequences", [](Scene&, OwnedStep& s) { s.sequence.pop_back(); }},
        Bad{"short_marks", "3 prompt marks", [](Scene&, OwnedStep& s) { s.is_prompt.pop_back(); }},
        Bad{"long_tokens", "5 tokens", [](Scene&, OwnedStep& s) { s.token.push_back(1); }},
        Bad{"token_too_large", "token id 37", [](Scene&, OwnedStep& s) { s.token[3] = 37; }},
        Bad{"token_negative", "token id -1", [](Scene&, OwnedStep& s) { s.token[0] = -1; }},
        Bad{"position_gap", "position 8", [](Scene&, OwnedStep& s) { s.position[2] = 8; }},
        Bad{"position_repeated", "position 5", [](Scene&, OwnedStep& s) { s.position[1] = 5; }},
        Bad{"position_in_the_past", "position 4", [](Scene&, OwnedStep& s) { s.position[0] = 4; }},
        Bad{"position_negative", "position -1", [](Scene&, OwnedStep& s) { s.position[0] = -1; }},
        Bad{"sequence_too_large", "sequence 2", [](Scene&, OwnedStep& s) { s.sequence[3] = 2; }},
        Bad{"sequence_negative", "sequence -1", [](Scene&, OwnedStep& s) { s.sequence[3] = -1; }},
        Bad{"sequence_none", "sequence 1 is none",
            [](Scene&, OwnedStep& s) { s.sequences[1] = nullptr; }},
        Bad{"sequence_twice", "the same one",
            [](Scene&, OwnedStep& s) {
              s.sequences[1] = s.sequences[0];
              s.position[3] = 5;
            }},
        Bad{"sequence_of_another_cache", "another model",
            [](Scene&, OwnedStep& s) {
              s.sequences[1] = TinyModel(1).kv->make_sequence();
              s.position[3] = 0;
            }},
        Bad{"logits_row_too_large", "logits of row 4",
            [](Scene&, OwnedStep& s) { s.logits_rows[1] = 4; }},
        Bad{"logits_row_negative", "logits of row -1",
            [](Scene&, OwnedStep& s) { s.logits_rows[1] = -1; }},
        Bad{"cache_full", "cache is full",
            [](Scene&, OwnedStep& s) {
              while (s.token.size() < 500) s.add(1, 0);
            }}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_P(BadStep, IsRefusedAndChangesNothing) {
  Scene scene, untouched;
  OwnedStep bad = scene.good();
  GetParam().change(scene, bad);
  const int64_t pages = scene.model.kv->pages_in_use();
  StepOut out;
  try {
    scene.model.decoder->step(bad.view(), out);
    FAIL() << "the step was taken";
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find(GetParam().message), std::string::npos)
        << error.what();
  }
  EXPECT_EQ(scene.a->length(), 5);
  EXPECT_EQ(scene.b->length(), 70);
  EXPECT_EQ(scene.model.kv->pages_in_use(), pages);
  // The right step gives what it gives on a model that was never asked for a bad one.
  StepOut expected;
  scene.model.decoder->step(scene.good().view(), out);
  untouched.model.decoder->step(untouched.good().view(), expected);
  EXPECT_EQ(out.logits, expected.logits);
  EXPECT_EQ(scene.a->length(), 8);
  EXPECT_EQ(scene.b->length(), 71);
}

class FailingNode : public Node {
 public:
  FailingNode() : Node("failing") {}
  void run(StepState& state) const override {
    if (armed) throw std::runtime_error("the node failed");
    (void)state;
  }
  const char* kind() const override { return "test"; }
  bool armed = true;
};

TEST(Decoder, ANodeThatFailsLeavesTheSequencesAsTheyWere) {
  Scene scene;
  auto failing = std::make_shared<FailingNode>();
  auto nodes = scene.model.nodes;
  nodes.push_back(failing);
  const auto decoder = scene.model.make_decoder(nodes);
  const int64_t pages = scene.model.kv->pages_in_use();
  OwnedStep step = scene.good();
  while (step.token.size() < 200) step.add(1, 1);
  StepOut out;
  EXPECT_THROW(decoder->step(step.view(), out), std::runtime_error);
  EXPECT_EQ(scene.a->length(), 5);
  EXPECT_EQ(scene.b->length(), 70);
  EXPECT_EQ(scene.model.kv->pages_in_use(), pages);
  failing->armed = false;
  decoder->step(scene.good().view(), out);
  Scene other;
  StepOut expected;
  other.model.decoder->step(other.good().view(), expected);
  EXPECT_EQ(out.logits, expected.logits);
}

TEST(Decoder, GivesWhatIsAskedFor) {
  Scene scene;
  OwnedStep step = scene.good();
  step.logits_rows = {3, 0, 3};
  step.want_hidden = true;
  StepOut out;
  scene.model.decoder->step(step.view(), out);
  ASSERT_EQ(out.logits.size(), 3u * TinyModel::kVocab);
  ASSERT_EQ(out.hidden.size(), 4u * TinyModel::kHidden);
  for (int i = 0; i < TinyModel::kVocab; ++i)
    EXPECT_EQ(out.logits[i], out.logits[2 * TinyModel::kVocab + i]);
  OwnedStep none;
  none.sequences = {scene.a};
  none.add(1, 0);
  scene.model.decoder->step(none.view(), out);
  EXPECT_TRUE(out.logits.empty());
  EXPECT_TRUE(out.hidden.empty());
}

GenerateOptions tokens(int count) {
  GenerateOptions options;
  options.max_new_tokens = count;
  return options;
}

using Prompts = std::vector<std::vector<int32_t>>;

TEST(Generate, ABatchGivesWhatItsPromptsGiveAlone) {
  TinyModel model;
  const Prompts prompts{{1, 2, 3}, {7}, std::vector<int32_t>(80, 5)};
  std::vector<std::shared_ptr<Sequence>> batch;
  for (size_t i = 0; i < prompts.size(); ++i) batch.push_back(model.kv->make_sequence());
  const auto together = generate(*model.decoder, batch, prompts, tokens(12), {});
  EXPECT_EQ(together.prompt_tokens, 84);
  EXPECT_EQ(together.eval_tokens, 3 * 11);
  for (size_t i = 0; i < prompts.size(); ++i) {
    EXPECT_EQ(batch[i]->length(), static_cast<int64_t>(prompts[i].size()) + 11);
    const std::vector sequence{model.kv->make_sequence()};
    const Prompts one{prompts[i]};
    GenerateOptions chunked = tokens(12);
    chunked.prompt_chunk = 7;
    EXPECT_EQ(generate(*model.decoder, sequence, one, chunked, {}).tokens[0], together.tokens[i]);
  }
}

TEST(Generate, EndsAtAStopTokenAtTheLimitAndOnRequest) {
  TinyModel model;
  const Prompts prompts{{1, 2, 3}};
  const auto run = [&](const GenerateOptions& options,
                       const std::function<bool(int, int32_t)>& on_token = {}) {
    const std::vector sequence{model.kv->make_sequence()};
    return generate(*model.decoder, sequence, prompts, options, on_token).tokens[0];
  };
  const std::vector<int32_t> all = run(tokens(20));
  ASSERT_EQ(all.size(), 20u);
  EXPECT_TRUE(run(tokens(0)).empty());
  EXPECT_EQ(run(tokens(1)), std::vector<int32_t>(all.begin(), all.begin() + 1));

  GenerateOptions stops = tokens(20);
  stops.stop_ids = {all[4], -5, 1000};  // ids that do not exist do no harm
  const auto first = std::find(all.begin(), all.end(), all[4]);
  EXPECT_EQ(run(stops), std::vector<int32_t>(all.begin(), first + 1));
  stops.min_new_tokens = 15;
  const auto longer = run(stops);
  EXPECT_GE(longer.size(), 15u);
  for (int i = 0; i < 15; ++i) EXPECT_NE(longer[i], all[4]);

  int calls = 0;
  EXPECT_EQ(run(tokens(20), [&](int, int32_t) { return ++calls < 6; }).size(), 6u);
  EXPECT_EQ(calls, 6);
  EXPECT_EQ(run(tokens(20), [](int, int32_t) { return false; }).size(), 1u);
  EXPECT_THROW(run(tokens(20), [](int, int32_t) -> bool { throw std::runtime_error("stop"); }),
               std::runtime_error);
  EXPECT_EQ(run(tokens(20)), all);  // and nothing of it stays behind
  EXPECT_EQ(model.kv->pages_in_use(), 0);
}

TEST(Generate, RefusesWhatMakesNoSense) {
  TinyModel model;
  const std::vector one{model.kv->make_sequence()};
  const auto refused = [&](const std::vector<std::shared_ptr<Sequence>>& sequences,
                           const Prompts& prompts, const GenerateOptions& options) {
    EXPECT_THROW(generate(*model.decoder, sequences, prompts, options, {}), InvalidArgument);
  };
  refused(one, {{1}, {2}}, tokens(4));
  refused(one, {{}}, tokens(4));
  refused(one, {{1, 37}}, tokens(4));
  refused(one, {{1}}, tokens(-1));
  refused({nullptr}, {{1}}, tokens(4));
  refused({one[0], one[0]}, {{1}, {2}}, tokens(4));
  refused(one, {std::vector<int32_t>(600, 1)}, tokens(4));
  GenerateOptions no_chunk = tokens(4);
  no_chunk.prompt_chunk = 0;
  refused(one, {{1}}, no_chunk);
}

TEST(Rounding, BelongsToTheRow) {
  using cpu::Rounding;
  for (const int32_t position : {0, 63, 64, 5000}) {
    for (const bool prompt : {false, true}) {
      EXPECT_EQ(rounding_of(Arithmetic::kF32, position, prompt), Rounding::kFloat);
      EXPECT_EQ(rounding_of(Arithmetic::kExact, position, prompt), Rounding::kExact);
      EXPECT_EQ(rounding_of(Arithmetic::kAuto, position, prompt),
                prompt && position >= 64 ? Rounding::kDigit : Rounding::kExact);
    }
  }
}

}  // namespace
}  // namespace kt::program
