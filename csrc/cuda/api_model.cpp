// The C surface of a model on a card: collects named parts, makes a CardModel of them, runs steps.
#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "cuda/api.h"
#include "cuda/api_guard.h"
#include "cuda/int4_gemm/placed.h"
#include "cuda/model/card.h"
#include "cuda/model/crossover.h"
#include "quant/convert.h"
#include "quant/formats.h"
#include "quant/quantize.h"

using namespace kt::cuda;

namespace {

constexpr int kWhole = -1;  // the layer of what belongs to the model

/// Named parts, each to be asked for once at least.
template <class T>
class Parts {
 public:
  void set(int layer, const std::string& name, T value) { all_[{layer, name}] = value; }
  bool has(int layer, const std::string& name) const { return all_.count({layer, name}) > 0; }
  T get(int layer, const std::string& name, T otherwise) {
    used_.insert({layer, name});
    const auto found = all_.find({layer, name});
    return found == all_.end() ? otherwise : found->second;
  }
  void check_all_used(const char* kind) const {
    for (const auto& [key, value] : all_)
      KT_CHECK(used_.count(key), "layer ", key.first, ": nothing is known of the ", kind, " ",
               key.second);
  }

 private:
  std::map<std::pair<int, std::string>, T> all_;
  std::set<std::pair<int, std::string>> used_;
};

}  // namespace

struct kt_cuda_card {
  kt_cuda_card(int device, size_t limit)
      : device(device), own_memory(open_memory(device)), memory(*own_memory, limit) {}

  int device;
  std::unique_ptr<Memory> own_memory;
  LimitedMemory memory;
  std::vector<kt_cuda_model*> models;  // on it, as they were opened
};

struct kt_cuda_model {
  kt_cuda_model(kt_cuda_card& card, int layers)
      : card(card), layers(layers), slots(layers), sources(layers) {
    card.models.push_back(this);
  }
  ~kt_cuda_model() { std::erase(card.models, this); }

  int number(int layer, const char* name, int otherwise = 0) {
    return static_cast<int>(numbers.get(layer, name, otherwise));
  }
  const float* floats(int layer, const char* name) {
    return static_cast<const float*>(memories.get(layer, name, nullptr));
  }
  const half_t* halves(int layer, const char* name) {
    return static_cast<const half_t*>(memories.get(layer, name, nullptr));
  }
  CardShape shape();
  CardLayer layer(int index);
  void add_slots(int index, CardLayer& layer);
  void build();
  void take_room(size_t pin_bytes);
  int run_job(int job) const {
    return running->job(running->context, job % layers_with_jobs, &model->host_job(job));
  }

  kt_cuda_card& card;
  int layers;
  Parts<double> numbers;
  Parts<void*> memories;
  Parts<CudaMatrix> matrices;
  std::vector<std::map<int, ExpertSlot>> slots;  // by expert, of each layer
  std::vector<std::vector<ExpertSource>> sources;  // by expert, of each layer
  std::unique_ptr<CardModel> model;
  std::vector<HandoffJob> jobs;
  std::unique_ptr<StepRunner> runner;
  const kt_cuda_step* running = nullptr;
  Crossover crossover{0};
  int layers_with_jobs = 0;
};

CardShape kt_cuda_model::shape() {
  const auto whole = [this](const char* name, int otherwise = 0) {
    return number(kWhole, name, otherwise);
  };
  const CardFacts facts = card_facts(card.device);
  CardShape s;
  s.rows = whole("rows"), s.slice = whole("slice"), s.sequences = whole("sequences");
  s.hidden = whole("hidden"), s.heads = whole("heads"), s.rope = whole("rope");
  s.q_lora = whole("q_lora"), s.kv_lora = whole("kv_lora"), s.nope = whole("nope");
  s.v = whole("v"), s.kv_heads = whole("kv_heads", 1), s.head_dim = whole("head_dim");
  s.experts = whole("experts"), s.top_k = whole("top_k");
  s.expert_inner = whole("expert_inner"), s.vocab = whole("vocab");
  s.pages = whole("pages"), s.max_pages = whole("max_pages");
  s.deferred = whole("defer_experts");
  s.stream_slots = whole("stream_slots");
  s.dense_rows = whole("dense_rows", kDenseRows);
  s.dense_bytes = static_cast<size_t>(numbers.get(kWhole, "dense_bytes", kDenseBytes));
  s.eps = static_cast<float>(numbers.get(kWhole, "eps", 1e-6));
  s.inner_eps = static_cast<float>(numbers.get(kWhole, "inner_eps", s.eps));
  s.scale = static_cast<float>(numbers.get(kWhole, "scale", 0));
  s.rope_scaling = static_cast<float>(numbers.get(kWhole, "rope_scaling", 1));
  s.rope_interleaved = whole("rope_interleaved") != 0;
  s.fp8_cache = whole("fp8_cache") != 0;
  s.n_group = whole("n_group", 1), s.topk_group = whole("topk_group", 1);
  s.sigmoid = whole("sigmoid") != 0, s.group_sum_of_two = whole("group_sum_of_two") != 0;
  s.norm_topk_prob = whole("norm_topk_prob") != 0;
  s.routed_scaling_factor =
      static_cast<float>(numbers.get(kWhole, "routed_scaling_factor", 1));
  s.sms = facts.sms, s.arch = facts.arch;
  return s;
}

CardLayer kt_cuda_model::layer(int i) {
  const auto matrix = [&](const char* name) { return matrices.get(i, name, {}); };
  const auto matrices_of = [&](std::initializer_list<const char*> names) {
    std::vector<CudaMatrix> found;
    for (const char* name : names)
      if (const CudaMatrix one = matrix(name)) found.push_back(one);
    return found;
  };
  CardLayer w{};
  w.attention_norm = floats(i, "attention_norm"), w.ffn_norm = floats(i, "ffn_norm");
  KT_CHECK(w.attention_norm && w.ffn_norm, "layer ", i, " lacks a norm");
  w.qkv = matrices_of({"q_a", "q", "k", "v", "kv_a"});
  w.q_norm = floats(i, "q_norm"), w.kv_norm = floats(i, "kv_norm");
  w.bias[0] = floats(i, "q_bias"), w.bias[1] = floats(i, "k_bias");
  w.bias[2] = floats(i, "v_bias");
  w.q_b = matrix("q_b"), w.o = matrix("o");
  w.k_b = halves(i, "k_b"), w.v_b = halves(i, "v_b");
  w.gate_up = matrices_of({"gate", "up"}), w.down = matrix("down");
  w.router = floats(i, "router"), w.router_bias = floats(i, "router_bias");
  w.shared_gate = floats(i, "shared_gate");
  w.ffn = number(i, "cpu_ffn") ? Ffn::kCpu : w.router ? Ffn::kRouted : Ffn::kDense;
  w.cpu_experts = number(i, "cpu_experts") != 0;
  w.slot_experts = {matrix("slot_gate"), matrix("slot_up"), matrix("slot_down")};
  w.source_experts = {matrix("source_gate"), matrix("source_up"), matrix("source_down")};
  w.sources = sources[i];
  if (!slots[i].empty()) add_slots(i, w);
  return w;
}

void kt_cuda_model::add_slots(int i, CardLayer& w) {
  std::vector<ExpertSlot> table(number(kWhole, "experts"), ExpertSlot{});
  for (const auto& [expert, slot] : slots[i]) {
    KT_CHECK(expert >= 0 && expert < int(table.size()), "expert ", expert, " of ", table.size());
    table[expert] = slot;
  }
  w.slots = card.memory.put(table);
  w.slot_table = std::move(table);
}

void kt_cuda_model::build() {
  KT_CHECK(!model, "this model is built already");
  const CardShape s = shape();
  std::vector<CardLayer> all;
  const auto run = [](void* self, int job) {
    if (static_cast<const kt_cuda_model*>(self)->run_job(job) != 0)
      throw kt::Error("the CPU's part of a step failed");
  };
  for (int i = 0; i < layers; ++i) {
    all.push_back(layer(i));
    const CardLayer& w = all.back();
    if (w.ffn != Ffn::kCpu && !(w.ffn == Ffn::kRouted && w.cpu_experts)) continue;
    jobs.push_back({run, this, static_cast<int>(jobs.size()), "the CPU's part of a layer"});
  }
  layers_with_jobs = static_cast<int>(jobs.size());
  for (int i = 0; s.deferred > 0 && i < layers_with_jobs; ++i)
    jobs.push_back({run, this, layers_with_jobs + i, "the deferred experts of a layer"});
  const CudaMatrix head = matrices.get(kWhole, "head", {});
  const float *norm = floats(kWhole, "final_norm"), *inv_freq = floats(kWhole, "inv_freq");
  crossover = Crossover(number(kWhole, "stream_from"));
  numbers.check_all_used("number"), memories.check_all_used("memory");
  matrices.check_all_used("matrix");
  model = std::make_unique<CardModel>(s, std::move(all), norm, head, inv_freq, card.memory,
                                      CardModel::Room::kLater);
}

/// Its share of what all models of the card leave: what they need first, then in equal parts to
/// those that can use it.
void kt_cuda_model::take_room(size_t pin_bytes) {
  KT_CHECK(model && !runner, "room is taken once, of a model that is built");
  size_t room = card.memory.shared_room(), own = 0;
  std::vector<size_t> needed, more;
  for (const kt_cuda_model* one : card.models) {
    KT_CHECK(one->model, "another model of this card is not built yet");
    if (one->model->has_room()) continue;
    if (one == this) own = needed.size();
    needed.push_back(one->model->plan_room(0).bytes);
    more.push_back(one->model->plan_room(CardModel::kAnyRoom).bytes - needed.back());
    room -= std::min(room, needed.back());
  }
  model->take_room(needed[own] + share_out(room, more)[own], pin_bytes);
  runner = make_runner(*model, card.memory, std::move(jobs));
}

namespace {

size_t limit_of(int device, int64_t asked) {
  const size_t free = card_facts(device).free;
  return asked > 0 ? std::min(free, static_cast<size_t>(asked)) : free;
}

/// first_row: of the step, in the one that was asked for. whole: it is that one; a part of a longer
/// one is no graph, whatever its rows. streams: where it is no graph.
void run_one_step(kt_cuda_model& m, const kt_cuda_step& step, int first_row, bool whole,
                  bool streams) {
  CardModel& model = *m.model;
  const bool head = model.shape().vocab > 0, one_each = step.rows == step.sequences;
  const bool decode = whole && one_each && step.num_head_rows == (head ? step.rows : 0) &&
                      (step.hidden_out == nullptr) == head;
  const int padded = StepRunner::padded(step.rows);
  const bool fits = decode && padded <= CardModel::kMostGraphRows &&
                    padded <= model.shape().slice && padded <= model.shape().sequences;
  StepSize size = model.begin_step(step, fits ? padded : 0, first_row);
  size.streams = !fits && streams;
  m.running = &step;
  m.runner->step(size);
  const size_t hidden = model.shape().hidden, vocab = model.shape().vocab;
  if (step.hidden_out)
    std::memcpy(step.hidden_out, model.hidden(), sizeof(float) * step.rows * hidden);
  if (size.sample)
    std::copy_n(model.tokens(), step.num_head_rows, step.tokens);
  else if (step.num_head_rows > 0)
    std::memcpy(step.logits, model.logits(), sizeof(float) * step.num_head_rows * vocab);
}

void run_step(kt_cuda_model& m, const kt_cuda_step& step) {
  KT_CHECK(m.runner, "the model is not built, or has no room");
  use_card(m.card.device);
  CardModel& model = *m.model;
  const CardShape& shape = model.shape();
  const bool streams = model.can_stream() && m.crossover.streams(step.rows);
  const double begin = kt::os::seconds();
  if (streams || step.rows <= shape.slice) {
    run_one_step(m, step, 0, true, streams);
  } else {
    for (int first = 0; first < step.rows; first += shape.slice) {
      const int rows = std::min(shape.slice, step.rows - first);
      const PartOfStep part(step, first, rows, shape.hidden, shape.vocab);
      run_one_step(m, part.step, first, false, false);
    }
  }
  m.crossover.took(step.rows, streams, kt::os::seconds() - begin);
}

}  // namespace

int kt_cuda_devices(int* count) {
  return guarded([&] { *count = card_count(); });
}

int kt_cuda_card_open(int device, int64_t limit, kt_cuda_card** card) {
  return guarded([&] {
    KT_CHECK(device >= 0 && device < card_count(), "no card ", device, " here, there are ",
             card_count());
    *card = new kt_cuda_card(device, limit_of(device, limit));
  });
}

int kt_cuda_card_close(kt_cuda_card* card) {
  return guarded([&] {
    if (card) use_card(card->device);
    delete card;
  });
}

int kt_cuda_staging_bytes() { return static_cast<int>(staging_bytes()); }

int kt_cuda_card_bytes(kt_cuda_card* card, int64_t* taken, int64_t* limit, int64_t* host) {
  *taken = static_cast<int64_t>(card->memory.taken());
  *limit = static_cast<int64_t>(card->memory.limit());
  *host = static_cast<int64_t>(card->memory.mapped());
  return 0;
}

int kt_cuda_card_put(kt_cuda_card* card, const void* from, int64_t bytes, void** memory) {
  return guarded([&] {
    use_card(card->device);
    *memory = card->memory.device(bytes);
    card->memory.upload(*memory, from, bytes);
  });
}

int kt_cuda_card_put_matrix(kt_cuda_card* card, const void* blocks, int64_t bytes, int n, int k,
                            int gguf_id, void** memory) {
  namespace quant = kt::quant;
  return guarded([&] {
    KT_CHECK(size_t(bytes) == quant::row_bytes(gguf_id, k) * n, bytes, " bytes are no ", n, " x ",
             k, " of GGUF type ", gguf_id);
    check_gemv_format(gguf_id);
    use_card(card->device);
    if (layout_of(gguf_id) == WeightLayout::kRows) {
      *memory = card->memory.device(bytes);
      return card->memory.upload(*memory, blocks, bytes);
    }
    std::vector<uint8_t> records(quant::r16_bytes(gguf_id, bytes, n));
    quant::r16_pack(gguf_id, {static_cast<const uint8_t*>(blocks), size_t(bytes)}, n, records);
    *memory = card->memory.device(records.size());
    card->memory.upload(*memory, records.data(), records.size());
  });
}

int kt_cuda_card_put_int4(kt_cuda_card* card, const void* blocks, int64_t bytes, int n, int k,
                          int gguf_id, int group, int threads, int* type, double* error,
                          double* power, void** memory) {
  return guarded([&] {
    const ConvertedInt4 made = convert_int4({static_cast<const uint8_t*>(blocks), size_t(bytes)},
                                            gguf_id, n, k, group, threads);
    use_card(card->device);
    *memory = card->memory.put(made.bytes);
    *type = made.matrix.type(), *error = made.error.squared, *power = made.error.power;
  });
}

int kt_cuda_card_put_halves(kt_cuda_card* card, const float* values, int64_t count,
                            void** memory) {
  return guarded([&] {
    use_card(card->device);
    std::vector<half_t> rounded(count);
    for (int64_t i = 0; i < count; ++i) rounded[i] = {kt::float_to_half(values[i])};
    *memory = card->memory.put(rounded);
  });
}

int kt_cuda_model_open(kt_cuda_card* card, int layers, kt_cuda_model** model) {
  return guarded([&] {
    KT_CHECK(layers > 0, layers, " layers");
    *model = new kt_cuda_model(*card, layers);
  });
}

int kt_cuda_model_close(kt_cuda_model* model) {
  return guarded([&] {
    if (model) use_card(model->card.device);
    delete model;
  });
}

int kt_cuda_model_number(kt_cuda_model* model, int layer, const char* name, double value) {
  return guarded([&] { model->numbers.set(layer, name, value); });
}

int kt_cuda_model_memory(kt_cuda_model* model, int layer, const char* name, void* memory) {
  return guarded([&] { model->memories.set(layer, name, memory); });
}

int kt_cuda_model_matrix(kt_cuda_model* model, int layer, const char* name, void* memory, int n,
                         int k, int type) {
  return guarded([&] {
    if (is_int4(type))
      placed_int4(type, n, k);
    else
      check_gemv_format(type);
    model->matrices.set(layer, name, {static_cast<const uint8_t*>(memory), n, k, type});
  });
}

int kt_cuda_model_expert(kt_cuda_model* model, int layer, int expert, void* gate, void* up,
                         void* down) {
  return guarded([&] {
    KT_CHECK(layer >= 0 && layer < model->layers, "layer ", layer, " of ", model->layers);
    const auto at = [](void* memory) { return static_cast<const uint8_t*>(memory); };
    model->slots[layer][expert] = {at(gate), at(up), at(down)};
  });
}

int kt_cuda_model_source(kt_cuda_model* model, int layer, int expert, int part, const void* at,
                         int64_t bytes) {
  return guarded([&] {
    KT_CHECK(layer >= 0 && layer < model->layers, "layer ", layer, " of ", model->layers);
    KT_CHECK(expert >= 0 && part >= 0 && part < 3 && bytes > 0, "part ", part, " of expert ",
             expert);
    std::vector<ExpertSource>& all = model->sources[layer];
    const auto experts = static_cast<size_t>(model->number(kWhole, "experts"));
    KT_CHECK(size_t(expert) < experts, "expert ", expert, " of ", experts);
    all.resize(experts);
    ExpertSource& one = all[expert];
    (part == 0 ? one.gate : part == 1 ? one.up : one.down)
        .push_back({static_cast<const uint8_t*>(at), static_cast<size_t>(bytes)});
  });
}

int kt_cuda_model_build(kt_cuda_model* model) {
  return guarded([&] {
    use_card(model->card.device);
    model->build();
  });
}

int kt_cuda_model_take_room(kt_cuda_model* model, int64_t pin_bytes, int* rows) {
  return guarded([&] {
    use_card(model->card.device);
    model->take_room(pin_bytes < 0 ? SIZE_MAX : static_cast<size_t>(pin_bytes));
    *rows = model->model->shape().rows;
  });
}

int kt_cuda_model_pinned(kt_cuda_model* model, int64_t* asked, int64_t* pinned, double* seconds,
                         char* why, size_t size) {
  return guarded([&] {
    KT_CHECK(model->runner && size > 0, "the model is not built, or has no room");
    const Pins::Report report = model->model->pinned();
    *asked = static_cast<int64_t>(report.asked), *pinned = static_cast<int64_t>(report.pinned);
    *seconds = report.seconds;
    const size_t length = report.why.copy(why, size - 1);
    why[length] = 0;
  });
}

int kt_cuda_model_step(kt_cuda_model* model, const kt_cuda_step* step) {
  return guarded([&] { run_step(*model, *step); });
}

int kt_cuda_model_copy_page(kt_cuda_model* model, int from, int to) {
  return guarded([&] {
    use_card(model->card.device);
    if (model->model) model->model->copy_page(from, to);
  });
}
