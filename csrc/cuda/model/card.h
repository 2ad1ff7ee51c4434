// The card behind a model: its memory, and what runs a model's steps on it. Two files implement
// this: card_runner_device.cu for real cards, api_emulated.cpp for the one the tests have.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cuda/graph/handoff.h"
#include "cuda/model/card_model.h"
#include "cuda/model/memory.h"

namespace kt::cuda {

struct CardFacts {
  std::string name;
  int sms, arch;  // arch: 90 for compute capability 9.0
  size_t memory, free;
};

int card_count();
CardFacts card_facts(int device);
/// Makes the card the one that this thread's calls are about.
void use_card(int device);
std::unique_ptr<Memory> open_memory(int device);
/// What copies from memory that is not pinned take of pinned memory (staging.h).
size_t staging_bytes();

class StepRunner {
 public:
  virtual ~StepRunner() = default;
  /// Rows to fill a decode step of so many up to, so that few graphs serve all;
  /// more than CardModel::kMostGraphRows stay as they are.
  static int padded(int rows) {
    for (int batch = 1; batch <= CardModel::kMostGraphRows; batch *= 2)
      if (rows <= batch) return batch;
    return rows;
  }
  /// Runs the step that CardModel::begin_step prepared, and waits for its end. Throws a job's
  /// exception, or Error where the watchdog gave up.
  virtual void step(const StepSize& size) = 0;
};

/// jobs: one per layer with work for the CPU, in order, and behind them those of their deferred
/// experts, where the model defers (CardModel::host_job has their data).
std::unique_ptr<StepRunner> make_runner(CardModel& model, Memory& memory,
                                        std::vector<HandoffJob> jobs);

}  // namespace kt::cuda
