// Streams and the prefix cache: what the batching engine is made of.
#include <pybind11/stl.h>

#include <memory>
#include <vector>

#include "bind/buffers.h"
#include "bind/register.h"
#include "program/prefix_cache.h"
#include "program/stream.h"

namespace py = pybind11;

namespace kt::bind {
namespace {

using program::Outcome;
using program::PrefixCache;
using program::Sequence;
using program::Stream;
using program::StreamOptions;
using program::TokenLogprob;

py::tuple logprob_tuple(const TokenLogprob& told) {
  return py::make_tuple(told.token, told.logprob, told.top);
}

// (token or None, (token, logprob, top) or None, prompt log-probabilities or None, error or None)
py::tuple outcome_tuple(const Outcome& outcome, bool logprobs) {
  const py::object none = py::none();
  py::object token = none, told = none, prompt = none, error = none;
  if (outcome.chosen) {
    token = py::int_(outcome.token.token);
    if (logprobs) told = logprob_tuple(outcome.token);
  }
  if (!outcome.prompt.empty()) {
    py::list rows;
    for (const TokenLogprob& row : outcome.prompt) rows.append(logprob_tuple(row));
    prompt = rows;
  }
  if (!outcome.error.empty()) error = py::str(outcome.error);
  return py::make_tuple(token, told, prompt, error);
}

py::list run_streams(program::Decoder& decoder, const std::vector<std::shared_ptr<Stream>>& streams,
                     const std::vector<int>& rows) {
  KT_CHECK(streams.size() == rows.size(), "run_streams: ", streams.size(), " streams, ",
           rows.size(), " numbers of rows");
  std::vector<program::Share> shares;
  for (size_t i = 0; i < streams.size(); ++i) {
    KT_CHECK(streams[i], "run_streams: stream ", i, " is none");
    shares.push_back({streams[i], rows[i]});
  }
  std::vector<Outcome> outcomes;
  {
    const Running running(decoder.context());
    outcomes = program::run_streams(decoder, shares);
  }
  py::list result;
  for (size_t i = 0; i < outcomes.size(); ++i)
    result.append(outcome_tuple(outcomes[i], streams[i]->options().top_logprobs >= 0));
  return result;
}

}  // namespace

void register_streams(py::module_& module) {
  py::class_<StreamOptions>(module, "StreamOptions")
      .def(py::init<>())
      .def_readwrite("sampling", &StreamOptions::sampling)
      .def_readwrite("stop_ids", &StreamOptions::stop_ids)
      .def_readwrite("min_new_tokens", &StreamOptions::min_new_tokens)
      .def_readwrite("top_logprobs", &StreamOptions::top_logprobs)
      .def_readwrite("prompt_logprobs", &StreamOptions::prompt_logprobs)
      .def_readwrite("logit_bias", &StreamOptions::logit_bias);
  py::class_<Stream, std::shared_ptr<Stream>>(module, "Stream",
                                              "A generation under way; see run_streams.")
      .def(py::init<std::shared_ptr<Sequence>, std::vector<int32_t>, const StreamOptions&>(),
           py::arg("sequence"), py::arg("prompt"), py::arg("options"))
      .def_property_readonly("tokens", &Stream::tokens)
      .def_property_readonly("length", [](const Stream& s) { return s.tokens().size(); })
      .def_property_readonly("prompt_length", &Stream::prompt_length)
      .def_property_readonly("pending", &Stream::pending)
      .def_property("sequence", &Stream::sequence, &Stream::set_sequence)
      .def(
          "set_mask",
          [](Stream& stream, const IntArray& words) {
            stream.set_mask({words.data(), static_cast<size_t>(words.size())});
          },
          py::arg("words"), "Allows only tokens whose bit is set, for the next choice.");
  module.def("run_streams", &run_streams, py::arg("decoder"), py::arg("streams"), py::arg("rows"),
             "One step: rows[i] pending rows of streams[i] -> per stream (token or None, (token, "
             "logprob, top) or None, those of the prompt or None, error or None).");
  py::class_<PrefixCache>(module, "PrefixCache", "Whole pages by the tokens they hold.")
      .def(py::init<std::shared_ptr<program::KvPool>>())
      .def(
          "match",
          [](PrefixCache& cache, const std::vector<int32_t>& tokens, int64_t most) {
            return cache.match(tokens, most);
          },
          py::arg("tokens"), py::arg("most"))
      .def(
          "insert",
          [](PrefixCache& cache, const Stream& stream) {
            cache.insert(*stream.sequence(), stream.tokens());
          },
          py::arg("stream"))
      .def("evict", &PrefixCache::evict, py::arg("pages"))
      .def("clear", &PrefixCache::clear)
      .def_property_readonly("pages", &PrefixCache::pages)
      .def_property_readonly("evictable", &PrefixCache::evictable);
}

}  // namespace kt::bind
