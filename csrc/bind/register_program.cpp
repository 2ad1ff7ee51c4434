// Cache, decoder program and generation.
#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include "base/os.h"
#include "bind/buffers.h"
#include "bind/register.h"
#include "cpu/isa.h"
#include "program/card_node.h"
#include "program/decoder.h"
#include "program/sampling.h"
#include "quant/formats.h"

namespace py = pybind11;

namespace kt::bind {
namespace {

using program::Decoder;
using program::KvPool;
using program::Sequence;
using Sequences = std::vector<std::shared_ptr<Sequence>>;

cpu::KvType kv_type(const std::string& name) {
  if (name == "f32") return cpu::KvType::kF32;
  if (name == "f16") return cpu::KvType::kF16;
  if (name == "bf16") return cpu::KvType::kBF16;
  if (name == "q8_0") return cpu::KvType::kQ8_0;
  if (name == "i16") return cpu::KvType::kI16;
  throw InvalidArgument(concat("cache type '", name, "' is unknown: i16, f16, bf16, f32 or q8_0"));
}

// Where modules that run in torch keep their keys and values: the same pages.
void check_range(const Sequence& sequence, int layer, int64_t begin, int64_t end) {
  KT_CHECK(layer >= 0 && layer < sequence.pool().num_layers(), "cache: layer ", layer, " of ",
           sequence.pool().num_layers());
  KT_CHECK(begin >= 0 && begin <= end && end <= sequence.length(), "cache: positions ", begin,
           " to ", end, " of a sequence of ", sequence.length());
  KT_CHECK(sequence.pool().spec(layer).k_width > 0, "cache: layer ", layer, " keeps its own on a card");
}

void write_cache(const Sequence& sequence, int layer, int64_t begin, const FloatArray& keys,
                 const FloatArray& values) {
  const KvPool& pool = sequence.pool();
  KT_CHECK(keys.ndim() == 2 && values.ndim() == 2 && keys.shape(0) == values.shape(0),
           "cache: keys and values must be [n, width]");
  check_range(sequence, layer, begin, begin + keys.shape(0));
  const cpu::KvSpec spec = pool.spec(layer);
  KT_CHECK(keys.shape(1) == spec.k_width && values.shape(1) == spec.v_width, "cache: rows of ",
           keys.shape(1), " + ", values.shape(1), " values, layer ", layer, " keeps ", spec.k_width,
           " + ", spec.v_width);
  const auto& kernels = cpu::kernels();
  const program::KvOptions& types = pool.options();
  for (py::ssize_t i = 0; i < keys.shape(0); ++i) {
    const int32_t page = sequence.pages()[(begin + i) / cpu::kKvBlock];
    cpu::store_position(kernels, spec, types.k_type, types.v_type, keys.data(i, 0),
                        spec.v_width > 0 ? values.data(i, 0) : nullptr,
                        static_cast<int>((begin + i) % cpu::kKvBlock), pool.keys(layer, page),
                        pool.values(layer, page));
  }
}

py::tuple read_cache(const Sequence& sequence, int layer, int64_t end) {
  const KvPool& pool = sequence.pool();
  check_range(sequence, layer, 0, end);
  const cpu::KvSpec spec = pool.spec(layer);
  const auto& kernels = cpu::kernels();
  const program::KvOptions& types = pool.options();
  FloatArray keys({py::ssize_t{end}, py::ssize_t{spec.k_width}});
  FloatArray values({py::ssize_t{end}, py::ssize_t{spec.v_width}});
  for (int64_t p = 0; p < end; ++p) {
    const int32_t page = sequence.pages()[p / cpu::kKvBlock];
    cpu::load_position(kernels, spec, types.k_type, types.v_type, pool.keys(layer, page),
                       pool.values(layer, page), static_cast<int>(p % cpu::kKvBlock),
                       keys.mutable_data(p, 0),
                       spec.v_width > 0 ? values.mutable_data(p, 0) : nullptr);
  }
  return py::make_tuple(keys, values);
}

using Widths = std::vector<std::tuple<int64_t, int64_t, int>>;

std::shared_ptr<KvPool> make_pool(const Widths& widths, const std::string& k_type,
                                  const std::string& v_type, int64_t max_positions) {
  std::vector<cpu::KvSpec> layers;
  for (const auto& [k, v, heads] : widths) layers.push_back({k, v, heads});
  const program::KvOptions options{kv_type(k_type), kv_type(v_type), max_positions};
  KT_CHECK(options.k_type == options.v_type || (options.k_type == cpu::KvType::kF16 &&
                                                options.v_type == cpu::KvType::kQ8_0),
           "cache types ", k_type, " and ", v_type,
           " do not go together: equal types, or f16 keys with q8_0 values");
  return std::make_shared<KvPool>(std::move(layers), options);
}

void register_cache(py::module_& m) {
  m.attr("KV_PAGE") = py::int_(cpu::kKvBlock);
  m.attr("CARD_HEAD_ROWS") = py::int_(int{KT_CUDA_MOST_HEAD_ROWS});
  m.attr("LONG_PROMPT") = py::int_(cpu::kLongPrompt);
  m.def(
      "kv_bytes_per_position",
      [](const Widths& widths, const std::string& k_type, const std::string& v_type) {
        return make_pool(widths, k_type, v_type, cpu::kKvBlock)->bytes_per_position();
      },
      py::arg("widths"), py::arg("k_type"), py::arg("v_type"),
      "What a KvPool of these layers takes per position.");
  py::class_<KvPool, std::shared_ptr<KvPool>>(
      m, "KvPool",
      "Pages of keys and values of all sequences; widths: (k, v, key heads they are of) per layer.")
      .def(py::init(&make_pool),
           py::arg("widths"), py::arg("k_type") = "f16", py::arg("v_type") = "f16",
           py::arg("max_positions") = 8192)
      .def("make_sequence", &KvPool::make_sequence)
      .def_property_readonly("bytes_per_position", &KvPool::bytes_per_position)
      .def_property_readonly("pages_in_use", &KvPool::pages_in_use)
      .def_property_readonly("page_limit", &KvPool::page_limit)
      .def_property_readonly("num_layers", &KvPool::num_layers);

  py::class_<Sequence, std::shared_ptr<Sequence>>(m, "Sequence")
      .def_property_readonly("length", &Sequence::length)
      .def_property_readonly("pages",
                             [](const Sequence& s) {
                               return std::vector<int32_t>(s.pages().begin(), s.pages().end());
                             })
      .def("extend", &Sequence::extend, py::arg("end"))
      .def("truncate", &Sequence::truncate, py::arg("length"))
      .def("fork", &Sequence::fork)
      .def("write", &write_cache, py::arg("layer"), py::arg("begin"), py::arg("keys"),
           py::arg("values"),
           "Stores rows [n, width] of keys and values from position `begin` on; the positions must "
           "be part of the sequence already (extend).")
      .def("read", &read_cache, py::arg("layer"), py::arg("end"),
           "Positions [0, end) of a layer -> (keys [end, k_width], values [end, v_width]).");
}

template <class Function>
Function function_at(const py::dict& card, const char* name) {
  return reinterpret_cast<Function>(card[name].cast<uintptr_t>());
}

std::shared_ptr<program::Node> card_node(const std::string& name, const py::dict& card,
                                         const py::dict& options,
                                         const std::vector<py::object>& jobs,
                                         int64_t hidden_size) {
  program::CardModel model;
  model.model = reinterpret_cast<void*>(card["model"].cast<uintptr_t>());
  model.step = function_at<decltype(model.step)>(card, "step");
  model.copy_page = function_at<decltype(model.copy_page)>(card, "copy_page");
  model.error = function_at<decltype(model.error)>(card, "error");
  model.keep = std::shared_ptr<void>(new py::object(card["keep"]), [](void* p) {
    py::gil_scoped_acquire acquire;
    delete static_cast<py::object*>(p);
  });
  const auto number = [&](const char* key) { return options[key].cast<int>(); };
  std::vector<program::CardJob> made;
  for (const py::object& job : jobs) {
    if (py::isinstance<cpu::Experts>(job))
      made.emplace_back(job.cast<std::shared_ptr<cpu::Experts>>());
    else
      made.emplace_back(job.cast<std::shared_ptr<cpu::FeedForward>>());
  }
  return std::make_shared<program::CardNode>(
      name, std::move(model),
      program::CardOptions{options["device"].cast<std::string>(), number("rows"),
                           number("sequences"), options["vocab"].cast<int64_t>(),
                           number("experts_per_token")},
      std::move(made), hidden_size);
}

void register_nodes(py::module_& m) {
  py::class_<program::Node, std::shared_ptr<program::Node>>(m, "Node")
      .def_property_readonly("name", &program::Node::name)
      .def_property_readonly("kind", &program::Node::kind)
      .def_property_readonly("device", &program::Node::device);
  m.def("attention_node", [](const std::string& name, std::shared_ptr<cpu::RmsNorm> norm,
                             std::shared_ptr<cpu::Attention> attention, int layer) {
    return std::shared_ptr<program::Node>(
        std::make_shared<program::AttentionNode>(name, norm, attention, layer));
  });
  m.def("feed_forward_node", [](const std::string& name, std::shared_ptr<cpu::RmsNorm> norm,
                                std::shared_ptr<cpu::FeedForward> ffn) {
    return std::shared_ptr<program::Node>(
        std::make_shared<program::FeedForwardNode>(name, norm, ffn));
  });
  m.def("card_node", &card_node, py::arg("name"), py::arg("card"), py::arg("options"),
        py::arg("jobs"), py::arg("hidden_size"),
        "Layers on a card. card: {model, step, copy_page, error: addresses, keep: who holds them}; "
        "options: {device, rows, sequences, vocab, experts_per_token}; jobs: Experts or feed-forward "
        "operators, one per layer with work for the CPU.");
  m.def(
      "callback_node",
      [](const std::string& name, py::function function, int64_t hidden_size) {
        // The step's facts and the residual stream, as arrays over the core's own memory: valid
        // during the call only.
        auto call = [function, hidden_size](const program::Step& step, float* hidden) {
          py::gil_scoped_acquire acquire;
          const auto rows = static_cast<py::ssize_t>(step.token.size());
          const auto view = [&](auto span) {
            using T = std::remove_const_t<typename decltype(span)::element_type>;
            return py::array_t<T>(rows, span.data());
          };
          const FloatArray stream({rows, py::ssize_t{hidden_size}}, hidden, py::none());
          function(stream, view(step.position), view(step.sequence), view(step.is_prompt),
                   Sequences(step.sequences.begin(), step.sequences.end()));
        };
        return std::shared_ptr<program::Node>(
            std::make_shared<program::CallbackNode>(name, std::move(call)));
      },
      py::arg("name"), py::arg("function"), py::arg("hidden_size"),
      "A layer run by function(hidden [m, hidden] in place, position, sequence, is_prompt, "
      "sequences).");
}

py::tuple step(Decoder& decoder, const IntArray& token, const IntArray& position,
               const IntArray& sequence, const ByteArray& is_prompt, const Sequences& sequences,
               const IntArray& logits_rows, bool want_hidden) {
  program::Step step;
  const auto span = [](const auto& array) {
    return std::span(array.data(), static_cast<size_t>(array.size()));
  };
  step.token = span(token);
  step.position = span(position);
  step.sequence = span(sequence);
  step.is_prompt = span(is_prompt);
  step.sequences = sequences;
  step.logits_rows = span(logits_rows);
  step.want_hidden = want_hidden;
  auto out = std::make_unique<program::StepOut>();
  {
    const Running running(decoder.context());
    decoder.step(step, *out);
  }
  program::StepOut* raw = out.release();
  py::capsule owner(raw, [](void* p) { delete static_cast<program::StepOut*>(p); });
  FloatArray logits({py::ssize_t{logits_rows.size()}, py::ssize_t{decoder.vocab_size()}},
                    raw->logits.data(), owner);
  if (!want_hidden) return py::make_tuple(logits, py::none());
  return py::make_tuple(
      logits, FloatArray({py::ssize_t{token.size()}, py::ssize_t{decoder.hidden_size()}},
                         raw->hidden.data(), owner));
}

}  // namespace

void register_program(py::module_& module) {
  register_cache(module);
  py::class_<program::Embedding, std::shared_ptr<program::Embedding>>(module, "Embedding")
      .def(py::init([](const py::buffer& data, const std::string& format, int64_t rows,
                       int64_t cols) {
             // The buffer's owner is kept: the blocks stay where they are, usually in a file map.
             auto keep = std::shared_ptr<void>(new py::buffer(data), [](void* p) {
               py::gil_scoped_acquire acquire;
               delete static_cast<py::buffer*>(p);
             });
             return std::make_shared<program::Embedding>(bytes_of(data, "embedding"), keep,
                                                         quant::format_id(format), rows, cols);
           }),
           py::arg("data"), py::arg("format"), py::arg("rows"), py::arg("cols"))
      .def("forward", [](const program::Embedding& embedding, const IntArray& tokens) {
        FloatArray out({tokens.size(), py::ssize_t{embedding.cols()}});
        for (py::ssize_t i = 0; i < tokens.size(); ++i)
          embedding.lookup(tokens.data()[i], out.mutable_data() + i * embedding.cols());
        return out;
      });
  register_nodes(module);

  py::class_<program::SamplingOptions>(module, "SamplingOptions")
      .def(py::init<>())
      .def_readwrite("greedy", &program::SamplingOptions::greedy)
      .def_readwrite("temperature", &program::SamplingOptions::temperature)
      .def_readwrite("top_k", &program::SamplingOptions::top_k)
      .def_readwrite("top_p", &program::SamplingOptions::top_p)
      .def_readwrite("min_p", &program::SamplingOptions::min_p)
      .def_readwrite("repetition_penalty", &program::SamplingOptions::repetition_penalty)
      .def_readwrite("presence_penalty", &program::SamplingOptions::presence_penalty)
      .def_readwrite("frequency_penalty", &program::SamplingOptions::frequency_penalty)
      .def_readwrite("seed", &program::SamplingOptions::seed);
  py::class_<program::Sampler>(module, "Sampler")
      .def(py::init<const program::SamplingOptions&>())
      .def("saw", [](program::Sampler& sampler,
                     const std::vector<int32_t>& tokens) { sampler.saw(tokens); })
      .def("sample", [](program::Sampler& sampler, const FloatArray& logits) {
        KT_CHECK(logits.ndim() == 1 && logits.size() > 0, "sample: logits must be [vocab]");
        return sampler.sample({logits.data(), static_cast<size_t>(logits.size())});
      });
  py::class_<program::GenerateOptions>(module, "GenerateOptions")
      .def(py::init<>())
      .def_readwrite("sampling", &program::GenerateOptions::sampling)
      .def_readwrite("max_new_tokens", &program::GenerateOptions::max_new_tokens)
      .def_readwrite("min_new_tokens", &program::GenerateOptions::min_new_tokens)
      .def_readwrite("stop_ids", &program::GenerateOptions::stop_ids)
      .def_readwrite("prompt_chunk", &program::GenerateOptions::prompt_chunk);
  py::class_<program::GenerateResult>(module, "GenerateResult")
      .def_readonly("tokens", &program::GenerateResult::tokens)
      .def_readonly("prompt_tokens", &program::GenerateResult::prompt_tokens)
      .def_readonly("eval_tokens", &program::GenerateResult::eval_tokens)
      .def_readonly("prompt_seconds", &program::GenerateResult::prompt_seconds)
      .def_readonly("eval_seconds", &program::GenerateResult::eval_seconds);

  py::class_<Decoder, std::shared_ptr<Decoder>>(module, "Decoder")
      .def(py::init([](std::shared_ptr<cpu::Context> context,
                       std::shared_ptr<program::Embedding> embedding,
                       const std::vector<std::shared_ptr<program::Node>>& nodes,
                       std::shared_ptr<cpu::RmsNorm> norm, std::shared_ptr<cpu::Linear> lm_head,
                       std::shared_ptr<KvPool> kv, program::Arithmetic arithmetic) {
             return std::make_shared<Decoder>(
                 context, embedding,
                 std::vector<std::shared_ptr<const program::Node>>(nodes.begin(), nodes.end()), norm,
                 lm_head, kv, arithmetic);
           }),
           py::arg("context"), py::arg("embedding"), py::arg("nodes"), py::arg("norm"),
           py::arg("lm_head").none(true), py::arg("kv"), py::arg("arithmetic"))
      .def("step", &step, py::arg("token"), py::arg("position"), py::arg("sequence"),
           py::arg("is_prompt"), py::arg("sequences"), py::arg("logits_rows"),
           py::arg("want_hidden") = false,
           "Evaluates rows -> (logits [logits_rows, vocab], hidden [m, hidden] or None).")
      .def(
          "generate",
          [](Decoder& decoder, const Sequences& sequences,
             const std::vector<std::vector<int32_t>>& prompts,
             const program::GenerateOptions& options, const py::object& on_token) {
            // Without a callback Python is looked at ten times a second, for Ctrl-C only.
            double looked = os::seconds();
            std::function<bool(int, int32_t)> callback = [&](int, int32_t) {
              if (os::seconds() - looked < 0.1) return true;
              py::gil_scoped_acquire acquire;
              if (PyErr_CheckSignals() != 0) throw py::error_already_set();
              looked = os::seconds();
              return true;
            };
            if (!on_token.is_none()) {
              callback = [&](int sequence, int32_t token) {
                py::gil_scoped_acquire acquire;
                if (PyErr_CheckSignals() != 0) throw py::error_already_set();
                return on_token(sequence, token).cast<bool>();
              };
            }
            const Running running(decoder.context());
            return program::generate(decoder, sequences, prompts, options, callback);
          },
          py::arg("sequences"), py::arg("prompts"), py::arg("options"),
          py::arg("on_token") = py::none(),
          "Generates without calling Python, unless on_token(sequence, token) -> bool is given.")
      .def("set_timing", &Decoder::set_timing, py::arg("on"),
           "Starts adding up where the time of steps goes, from zero, or stops.")
      .def_property_readonly(
          "phase_seconds",
          [](const Decoder& decoder) {
            py::dict seconds;
            if (!decoder.times()) return seconds;
            for (size_t i = 0; i < cpu::kPhaseNames.size(); ++i)
              seconds[cpu::kPhaseNames[i]] = decoder.times()->seconds(static_cast<cpu::Phase>(i));
            return seconds;
          },
          "Seconds per phase of all steps since set_timing(True); empty where timing is off.")
      .def_property_readonly("vocab_size", &Decoder::vocab_size)
      .def_property_readonly("tokens_sampled", &Decoder::tokens_sampled,
                             "Tokens that a card chose, whose logits stayed there.")
      .def_property_readonly("hidden_size", &Decoder::hidden_size)
      .def_property_readonly("arithmetic", &Decoder::arithmetic)
      .def_property_readonly("kv", &Decoder::kv_pointer)
      .def_property_readonly("nodes", [](const Decoder& decoder) {
        py::list rows;
        for (const auto& node : decoder.nodes())
          rows.append(py::make_tuple(node->name(), node->kind(), node->device()));
        return rows;
      });
}

}  // namespace kt::bind
