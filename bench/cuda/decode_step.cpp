// Generated tokens at DeepSeek-V3's width, experts on the CPU inside the step's graph:
//
//   kt_gpu_decode [--batch N] [--context N] [--experts N] [--threads N] [--steps N] [--json FILE]
//   kt_gpu_decode --layers 61 ...
//
// Each figure stands against what the same run measured of the machine. Without --layers: a step of
// four layers, and the GPU's phase of one MoE layer with an empty job for the CPU, its weights in
// Q4_K and Q6_K, in int4 with Q4_K's codes, and in int4 with a scale per 128 values. With 61: the
// whole of DeepSeek-V3's shape at a context of 4k and 128k with no more than 24 GiB on the card;
// layers take turns with 12 sets of 256 experts (82 GB).
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>

#include "base/os.h"
#include "cpu/ops/limits.h"
#include "cuda/common/cuda_error.h"
#include "cuda/model/card_runner.h"
#include "v3_width.h"

namespace kt::bench {
namespace {

struct Options {
  V3Options v3;
  int threads = 0, steps = 60, layers = 0;
  std::string json;
};

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 == argc) throw InvalidArgument(name + " needs a value");
    const int value = std::atoi(argv[i + 1]);
    if (name == "--json") {
      o.json = argv[i + 1];
      continue;
    }
    KT_CHECK(value > 0, name, " ", argv[i + 1], ": must be a number above 0");
    if (name == "--layers")
      o.layers = value;
    else if (name == "--batch")
      o.v3.batch = value;
    else if (name == "--context")
      o.v3.context = value;
    else if (name == "--experts")
      o.v3.experts = value;
    else if (name == "--threads")
      o.threads = value;
    else if (name == "--steps")
      o.steps = value;
    else
      throw InvalidArgument("unknown flag " + name);
  }
  return o;
}

struct Card {
  std::string name;
  int sms, arch;
  double copy_gbps;
};

Card this_card() {
  cudaDeviceProp p;
  cuda::check(cudaGetDeviceProperties(&p, 0), "cudaGetDeviceProperties");
  constexpr size_t kBytes = size_t{1} << 30;
  cuda::CudaMemory memory;
  void *from = memory.device(kBytes), *to = memory.device(kBytes);
  double best = 1e9;
  for (int i = 0; i < 6; ++i) {
    cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    const double begin = os::seconds();
    cuda::check(cudaMemcpyAsync(to, from, kBytes, cudaMemcpyDeviceToDevice), "cudaMemcpyAsync");
    cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    best = std::min(best, os::seconds() - begin);
  }
  return {p.name, p.multiProcessorCount, p.major * 10 + p.minor, 2 * kBytes / best / 1e9};
}

struct Times {
  double median, p99;
};
Times times_of(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return {seconds[seconds.size() / 2], seconds[seconds.size() * 99 / 100]};
}

constexpr int kWarmUp = 10;

/// Seconds of `steps` steps behind a context.
std::vector<double> run_steps(const V3& v3, cuda::CardModel& model, cuda::CardRunner& runner,
                              int context, int steps) {
  const cuda::CardShape& s = v3.shape;
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> embeddings(size_t(s.rows) * s.hidden);
  std::vector<std::vector<int32_t>> pages(s.rows);
  for (int row = 0; row < s.rows; ++row)
    for (int i = 0; i < s.max_pages; ++i) pages[row].push_back(row * s.max_pages + i);
  std::vector<double> seconds;
  for (int step = -kWarmUp; step < steps; ++step) {
    for (float& v : embeddings) v = normal(random);
    const std::vector<int32_t> positions(s.rows, context + (step + kWarmUp) % 64);
    const double begin = os::seconds();
    runner.step(model.begin_step(embeddings.data(), positions.data(), pages));
    if (step >= 0) seconds.push_back(os::seconds() - begin);
  }
  return seconds;
}

struct Row {
  std::string work;
  Times times;
  double bound, must;  // seconds; fraction of the bound
  size_t nodes;
  bool right;
};

/// A model with its experts on the CPU, ready to step.
class Steps {
 public:
  Steps(const V3& v3, cuda::CardModel& model, cuda::Memory& memory, cpu::Context& context,
        const V3Options& options)
      : v3_(v3), model_(model), options_(options), job_{&model, &v3, &context} {
    const auto run = [](void* job, int layer) { static_cast<ExpertJob*>(job)->run(layer); };
    std::vector<cuda::HandoffJob> jobs;
    for (int i = 0; i < options.moe_layers; ++i) jobs.push_back({run, &job_, i, "experts"});
    // The coordinator is the pool's worker 0, whose core the others leave free.
    cuda::HandoffOptions handoff;
    handoff.cpu = os::usable_cores().front().id;
    runner_ =
        std::make_unique<cuda::CardRunner>(model, memory, jobs, cuda::probe_handoff(), handoff);
  }
  std::vector<double> run(int steps) {
    run_steps(v3_, model_, *runner_, options_.context, 3);
    job_.bytes = 0;
    std::vector<double> seconds = run_steps(v3_, model_, *runner_, options_.context, steps);
    expert_bytes_ = double(job_.bytes) / (steps + kWarmUp);
    return seconds;
  }
  /// Of a step.
  double expert_bytes() const { return expert_bytes_; }
  size_t nodes() const { return runner_->nodes(); }
  bool right() const {
    return std::all_of(model_.logits(), model_.logits() + options_.vocab,
                       [](float v) { return std::isfinite(v); });
  }

 private:
  const V3& v3_;
  cuda::CardModel& model_;
  V3Options options_;
  ExpertJob job_;
  double expert_bytes_ = 0;
  std::unique_ptr<cuda::CardRunner> runner_;
};

Row decode_step(const Options& o, const Card& card, cpu::Context& context, double read_gbps) {
  cuda::CudaMemory memory;
  const V3 v3 = V3Maker(memory, context).make(o.v3, card.sms, card.arch);
  cuda::CardModel model(v3.shape, v3.layers, v3.final_norm, v3.head, v3.inv_freq, memory);
  Steps steps(v3, model, memory, context, o.v3);
  const std::vector<double> seconds = steps.run(o.steps);
  const double bound = steps.expert_bytes() / read_gbps / 1e9 +
                       double(model.step_bytes(o.v3.context)) / card.copy_gbps / 1e9 +
                       15e-6 * o.v3.moe_layers;
  return {concat("decode step, ", o.v3.moe_layers + o.v3.dense_layers,
                 " layers of V3 width, batch ", o.v3.batch, ", context ", o.v3.context),
          times_of(seconds),
          bound,
          1 / 1.15,
          steps.nodes(),
          steps.right()};
}

/// int4: as V3Options has it.
Row gpu_phase(const Options& o, const Card& card, cpu::Context& context, int int4) {
  cuda::CudaMemory memory;
  V3Options one = o.v3;
  one.int4 = int4;
  one.dense_layers = 0, one.moe_layers = 1, one.experts = 8, one.vocab = 64;
  const V3 v3 = V3Maker(memory, context).make(one, card.sms, card.arch);
  cuda::CardModel model(v3.shape, v3.layers, v3.final_norm, v3.head, v3.inv_freq, memory);
  const std::vector<cuda::HandoffJob> jobs{{[](void*, int) {}, nullptr, 0, "an empty job"}};
  cuda::CardRunner runner(model, memory, jobs, cuda::probe_handoff(), {});
  const std::vector<double> seconds = run_steps(v3, model, runner, one.context, o.steps);
  const double bound = double(model.step_bytes(one.context)) / card.copy_gbps / 1e9 + 40e-6;
  return {
      concat("one V3 layer", int4 < 0 ? "" : int4 == 0 ? " (int4 of q4_k)" : " (int4 g128)",
             ", GPU phase and hand-off, batch ", one.batch, ", context ", one.context),
      times_of(seconds),
      bound,
      1,
      runner.nodes(),
      true};
}

/// The whole model's shape; `whole` keeps the experts for the next call.
Row whole_model(const Options& o, const Card& card, cpu::Context& context, double read_gbps,
                int length, double gib_limit, V3Options& whole) {
  cuda::CudaMemory card_memory;
  cuda::LimitedMemory memory(card_memory, size_t(gib_limit * double(1 << 30)));
  whole.dense_layers = std::min(3, o.layers - 1), whole.moe_layers = o.layers - whole.dense_layers;
  whole.experts = 256, whole.banks = 12, whole.vocab = 129280, whole.context = length;
  const V3 v3 = V3Maker(memory, context).make(whole, card.sms, card.arch);
  whole.given.assign(v3.experts.begin(),
                     v3.experts.begin() + std::min(whole.banks, whole.moe_layers));
  cuda::CardModel model(v3.shape, v3.layers, v3.final_norm, v3.head, v3.inv_freq, memory);
  Steps steps(v3, model, memory, context, whole);
  const std::vector<double> seconds = steps.run(o.steps);
  return {concat(o.layers, " layers of V3 width, context ", length, ", ",
                 double(memory.taken()) / double(1 << 30), " GiB on the card"),
          times_of(seconds),
          steps.expert_bytes() / read_gbps / 1e9,
          0.6,
          steps.nodes(),
          steps.right()};
}

std::string json_of(const Card& card, double read_gbps, const std::vector<Row>& rows) {
  std::string text =
      concat("{\"card\": \"", card.name, "\", \"limits\": {\"copy_gbps\": ", card.copy_gbps,
             ", \"cpu_read_gbps\": ", read_gbps, "}, \"rows\": [");
  for (const Row& r : rows) {
    const double ratio = r.bound / r.times.median;
    const char* verdict = !r.right ? "wrong" : ratio >= r.must ? "ok" : "short";
    text +=
        concat(&r == rows.data() ? "" : ", ", "{\"work\": \"", r.work,
               "\", \"us\": ", r.times.median * 1e6, ", \"p99_us\": ", r.times.p99 * 1e6,
               ", \"bound_us\": ", r.bound * 1e6, ", \"ratio\": ", ratio, ", \"must\": ", r.must,
               ", \"nodes\": ", r.nodes, ", \"verdict\": \"", verdict, "\"}");
  }
  return text + "]}\n";
}

int run(int argc, char** argv) {
  const Options o = parse(argc, argv);
  const Card card = this_card();
  cpu::Context context(o.threads);
  const double read = cpu::measure_limits(context, int64_t{4} << 30, 3).read_gbps;
  std::vector<Row> rows;
  if (o.layers > 1) {
    V3Options whole = o.v3;
    rows.push_back(whole_model(o, card, context, read, 4096, 14, whole));
    rows.push_back(whole_model(o, card, context, read, 131072, 24, whole));
  } else {
    for (const int int4 : {-1, 0, 128}) rows.push_back(gpu_phase(o, card, context, int4));
    rows.push_back(decode_step(o, card, context, read));
  }
  const std::string json = json_of(card, read, rows);
  std::fputs(json.c_str(), stdout);
  if (!o.json.empty()) std::ofstream(o.json) << json;
  return 0;
}

}  // namespace
}  // namespace kt::bench

int main(int argc, char** argv) {
  try {
    return kt::bench::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
