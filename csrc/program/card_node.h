// Layers on a card, as one instruction of the program.
#pragma once

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "cpu/ops/ffn.h"
#include "cuda/api_step.h"
#include "program/decoder.h"

namespace kt::program {

/// A model of the CUDA library (csrc/cuda/api.h): its functions by address, for the core does not
/// link the library. `keep` holds both.
struct CardModel {
  void* model = nullptr;
  int (*step)(void* model, const kt_cuda_step*) = nullptr;
  int (*copy_page)(void* model, int from, int to) = nullptr;
  const char* (*error)() = nullptr;
  std::shared_ptr<void> keep;
};

/// What the CPU computes within a layer on the card: some of its experts, or its feed-forward part.
using CardJob =
    std::variant<std::shared_ptr<const cpu::Experts>, std::shared_ptr<const cpu::FeedForward>>;

struct CardOptions {
  std::string device;    // "cuda:0"
  int rows = 1;          // most of a step of the card; more are cut
  int sequences = 1;     // most of a step of the card
  int64_t vocab = 0;     // 0: the card has no head
  int experts_per_token = 0;
};

/// hidden = layers(hidden), or the logits where the card has the head. Rows are taken sequence by
/// sequence, in as many steps of the card as its room asks for.
class CardNode : public Node {
 public:
  CardNode(std::string name, CardModel card, CardOptions options, std::vector<CardJob> jobs,
           int64_t hidden_size);
  void run(StepState& state) const override;
  const char* kind() const override { return "card_layers"; }
  const char* device() const override { return options_.device.c_str(); }
  int64_t vocab_size() const override { return options_.vocab; }
  bool can_sample() const override { return options_.vocab > 0; }
  void copy_page(int32_t from, int32_t to) const override;

 private:
  struct Running;
  /// Of every row of a step, where its logits stand among those wanted.
  using Places = std::vector<std::vector<size_t>>;
  void run_piece(StepState& state, const std::vector<int>& rows, const Places& places) const;
  static int run_job(void* running, int job, const kt_cuda_job* data);

  CardModel card_;
  CardOptions options_;
  std::vector<CardJob> jobs_;
  int64_t hidden_size_;
};

}  // namespace kt::program
