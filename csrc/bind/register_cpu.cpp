// CPU context, weights and operators. Arrays are float32, C-contiguous; rows come first.
#include <pybind11/stl.h>

#include <memory>
#include <vector>

#include "base/os.h"
#include "bind/buffers.h"
#include "bind/register.h"
#include "cpu/isa.h"
#include "cpu/ops/attention.h"
#include "cpu/ops/ffn.h"
#include "cpu/ops/linear.h"
#include "program/decoder.h"
#include "quant/formats.h"
#include "quant/r16.h"

namespace py = pybind11;

namespace kt::bind {
namespace {

using cpu::Context;
using cpu::Rounding;
using program::Arithmetic;

std::vector<float> to_vector(const FloatArray& array) {
  return {array.data(), array.data() + array.size()};
}

const Rounding* roundings(const ByteArray& array, int64_t m) {
  KT_CHECK(array.ndim() == 1 && array.size() == m, "rounding: ", array.size(), " marks for ", m,
           " rows");
  for (int64_t i = 0; i < m; ++i)
    KT_CHECK(array.data()[i] <= 2, "rounding: mark ", int{array.data()[i]}, " of row ", i);
  return reinterpret_cast<const Rounding*>(array.data());
}

// x as [m, cols], checked.
int rows_of(const FloatArray& x, int64_t cols, const char* what) {
  KT_CHECK(x.ndim() == 2 && x.shape(1) == cols, what, ": expected [rows, ", cols, "], got ",
           x.ndim(), " axes", x.ndim() == 2 ? concat(", ", x.shape(1), " columns") : "");
  return static_cast<int>(x.shape(0));
}

FloatArray linear_forward(const cpu::Linear& linear, Context& context, const FloatArray& x,
                          const ByteArray& rounding) {
  const int m = rows_of(x, linear.cols(), linear.weight().name().c_str());
  const Rounding* marks = roundings(rounding, m);
  FloatArray out({py::ssize_t{m}, py::ssize_t{linear.rows()}});
  if (m == 0) return out;
  float* y = out.mutable_data();
  const float* in = x.data();
  const Running running(context);
  cpu::Arena::Scope scope(context.arena);
  const cpu::Activations input(context, in, linear.cols(), m, linear.cols(), marks);
  const cpu::LinearCall call[] = {{&linear, &input, y, linear.rows()}};
  cpu::run_linears(context, call);
  return out;
}

FloatArray feed_forward(const cpu::FeedForward& op, Context& context, const FloatArray& x,
                        const ByteArray& rounding) {
  const int m = rows_of(x, op.hidden_size(), "feed-forward");
  const Rounding* marks = roundings(rounding, m);
  FloatArray out({py::ssize_t{m}, py::ssize_t{op.hidden_size()}});
  if (m == 0) return out;
  float* y = out.mutable_data();
  const float* in = x.data();
  const Running running(context);
  op.forward(context, in, m, marks, y);
  return out;
}

FloatArray attention_forward(const cpu::Attention& op, Context& context, const FloatArray& x,
                             const IntArray& position, const IntArray& sequence,
                             const ByteArray& rounding,
                             const std::vector<std::shared_ptr<program::Sequence>>& sequences,
                             int layer) {
  const int m = rows_of(x, op.hidden_size(), "attention");
  const Rounding* marks = roundings(rounding, m);
  KT_CHECK(position.size() == m && sequence.size() == m, "attention: ", position.size(),
           " positions and ", sequence.size(), " sequence numbers for ", m, " rows");
  KT_CHECK(!sequences.empty() && sequences[0], "attention: no sequences");
  program::KvPool& pool = sequences[0]->pool();
  KT_CHECK(layer >= 0 && layer < pool.num_layers(), "attention: layer ", layer, " of ",
           pool.num_layers());
  const cpu::KvSpec spec = op.kv_spec(), have = pool.spec(layer);
  KT_CHECK(spec.k_width == have.k_width && spec.v_width == have.v_width &&
               spec.heads == have.heads,
           "attention: layer ", layer, " keeps ", spec.k_width, " + ", spec.v_width, " values of ",
           spec.heads, " heads, its cache has ", have.k_width, " + ", have.v_width, " of ",
           have.heads);
  std::vector<std::vector<uint8_t*>> k(sequences.size()), v(sequences.size());
  for (size_t s = 0; s < sequences.size(); ++s) {
    KT_CHECK(sequences[s], "attention: sequence ", s, " is none");
    KT_CHECK(&sequences[s]->pool() == &pool, "attention: sequences of different caches");
    for (const int32_t page : sequences[s]->pages()) {
      k[s].push_back(pool.keys(layer, page));
      v[s].push_back(pool.values(layer, page));
    }
  }
  std::vector<cpu::KvPages> pages(m);
  for (int row = 0; row < m; ++row) {
    const int32_t s = sequence.data()[row];
    KT_CHECK(s >= 0 && static_cast<size_t>(s) < sequences.size(), "attention: sequence ", s, " of ",
             sequences.size());
    KT_CHECK(position.data()[row] >= 0 && position.data()[row] < sequences[s]->length(),
             "attention: position ", position.data()[row], " of a sequence of ",
             sequences[s]->length());
    pages[row] = {k[s].data(), v[s].data()};
  }
  FloatArray out({py::ssize_t{m}, py::ssize_t{op.hidden_size()}});
  if (m == 0) return out;
  float* y = out.mutable_data();
  const float* in = x.data();
  const auto& options = pool.options();
  const cpu::AttentionRows rows{m, position.data(), marks, pages.data(), sequence.data(),
                                options.k_type, options.v_type};
  const Running running(context);
  op.forward(context, rows, in, y);
  return out;
}

using MatrixList = std::vector<std::shared_ptr<cpu::Matrix>>;

MatrixList without_const(const cpu::Matrix::Stack& stack) {
  MatrixList list;
  for (const auto& matrix : stack) list.push_back(std::const_pointer_cast<cpu::Matrix>(matrix));
  return list;
}

MatrixList repack_stack(Context& context, const py::buffer& data, const std::string& format,
                        int64_t count, int64_t rows, int64_t cols, const std::string& name) {
  const auto bytes = bytes_of(data, name.c_str());
  const int id = quant::format_id(format);
  const Running running(context);
  return without_const(cpu::Matrix::repack_stack(context, bytes, {id, count, rows, cols, name}));
}

MatrixList from_records(Context& context, const py::buffer& data, const std::string& format,
                        int64_t count, int64_t rows, int64_t cols, const std::string& name,
                        bool in_place) {
  const auto bytes = bytes_of(data, name.c_str());
  const int id = quant::format_id(format);
  std::shared_ptr<const void> keep;
  if (in_place) {
    keep = std::shared_ptr<const void>(new py::buffer(data), [](const void* p) {
      const py::gil_scoped_acquire acquire;
      delete static_cast<const py::buffer*>(p);
    });
  }
  const Running running(context);
  return without_const(
      cpu::Matrix::from_records(context, bytes, {id, count, rows, cols, name}, std::move(keep)));
}

uint64_t checksum_of(Context& context, const py::buffer& data, uint64_t place) {
  const auto bytes = bytes_of(data, "checksum");
  const Running running(context);
  return cpu::checksum_in_parallel(context, bytes, place);
}

py::list slices_of(const std::shared_ptr<cpu::Matrix>& matrix) {
  py::list list;
  for (const cpu::RowSlice& slice : matrix->slices()) {
    const auto bytes = static_cast<py::ssize_t>(matrix->slice_bytes(slice));
    py::array_t<uint8_t> view({bytes}, {1}, slice.data, py::cast(matrix));
    view.attr("flags").attr("writeable") = false;
    list.append(py::make_tuple(slice.node, slice.row_begin, slice.rows, view));
  }
  return list;
}

void register_weights(py::module_& m) {
  py::class_<cpu::Matrix, std::shared_ptr<cpu::Matrix>>(
      m, "Matrix", "A weight matrix [rows, cols], repacked to R16 from the file's blocks.")
      .def(py::init([](Context& context, const py::buffer& data, const std::string& format,
                       int64_t rows, int64_t cols, const std::string& name) {
             const auto bytes = bytes_of(data, name.c_str());
             const int id = quant::format_id(format);
             const Running running(context);
             return std::const_pointer_cast<cpu::Matrix>(
                 cpu::Matrix::repack(context, bytes, id, rows, cols, name));
           }),
           py::arg("context"), py::arg("data"), py::arg("format"), py::arg("rows"),
           py::arg("cols"), py::arg("name"))
      .def_static("repack_stack", &repack_stack, py::arg("context"), py::arg("data"),
                  py::arg("format"), py::arg("count"), py::arg("rows"), py::arg("cols"),
                  py::arg("name"), "[count, rows, cols] in the file's blocks -> count matrices.")
      .def_static("from_records", &from_records, py::arg("context"), py::arg("data"),
                  py::arg("format"), py::arg("count"), py::arg("rows"), py::arg("cols"),
                  py::arg("name"), py::arg("in_place"),
                  "Matrices from the bytes that `slices` gave; in place they stay in `data`.")
      .def_static(
          "record_bytes",
          [](const std::string& format, int64_t rows, int64_t cols) {
            return cpu::Matrix::record_bytes(quant::format_id(format), rows, cols);
          },
          py::arg("format"), py::arg("rows"), py::arg("cols"), "Bytes of a matrix in R16.")
      .def_property_readonly("rows", &cpu::Matrix::rows)
      .def_property_readonly("cols", &cpu::Matrix::cols)
      .def_property_readonly("bytes", &cpu::Matrix::bytes)
      .def_property_readonly("slices", &slices_of,
                             "[(node, first row, rows, bytes)]: bytes is a read-only view.")
      .def_property_readonly("name", &cpu::Matrix::name)
      .def_property_readonly("format", [](const cpu::Matrix& matrix) {
        return quant::find_format(matrix.gguf_id())->name;
      });

  py::class_<cpu::Linear, std::shared_ptr<cpu::Linear>>(m, "Linear", "y = x W^T + bias.")
      .def(py::init([](std::shared_ptr<cpu::Matrix> weight, const py::object& bias) {
             return std::make_shared<cpu::Linear>(
                 std::move(weight),
                 bias.is_none() ? std::vector<float>{} : to_vector(bias.cast<FloatArray>()));
           }),
           py::arg("weight"), py::arg("bias") = py::none())
      .def("forward", &linear_forward, py::arg("context"), py::arg("x"), py::arg("rounding"),
           "x: [m, cols], rounding: [m] -> [m, rows].")
      .def(
          "set_adapter",
          [](cpu::Linear& linear, const FloatArray& a, const FloatArray& b, float scale) {
            auto adapter = std::make_shared<cpu::LowRank>();
            KT_CHECK(a.ndim() == 2 && b.ndim() == 2, "adapter: a and b must have two axes");
            adapter->a = to_vector(a);
            adapter->b = to_vector(b);
            adapter->rank = static_cast<int>(a.shape(0));
            adapter->scale = scale;
            linear.set_adapter(std::move(adapter));
          },
          py::arg("a"), py::arg("b"), py::arg("scale") = 1.0f,
          "Adds scale * B (A x); a: [rank, cols], b: [rows, rank].")
      .def_property_readonly("rows", &cpu::Linear::rows)
      .def_property_readonly("cols", &cpu::Linear::cols);

  py::class_<cpu::RmsNorm, std::shared_ptr<cpu::RmsNorm>>(m, "RmsNorm")
      .def(py::init([](const FloatArray& weight, float eps) {
             return std::make_shared<cpu::RmsNorm>(cpu::RmsNorm{to_vector(weight), eps});
           }),
           py::arg("weight"), py::arg("eps"))
      .def("forward",
           [](const cpu::RmsNorm& norm, Context& context, const FloatArray& x) {
             const auto n = static_cast<int64_t>(norm.weight.size());
             const int rows = rows_of(x, n, "RmsNorm");
             FloatArray out({py::ssize_t{rows}, py::ssize_t{n}});
             for (int row = 0; row < rows; ++row)
               context.kernels.rms_norm(x.data() + row * n, norm.weight.data(), norm.eps, n,
                                        out.mutable_data() + row * n);
             return out;
           });

  py::class_<cpu::Rope, std::shared_ptr<cpu::Rope>>(m, "Rope")
      .def(py::init([](const FloatArray& inv_freq, float attention_scaling, bool interleaved) {
             KT_CHECK(inv_freq.size() > 0, "rope: no frequencies");
             return std::make_shared<cpu::Rope>(
                 cpu::Rope{to_vector(inv_freq), attention_scaling, interleaved});
           }),
           py::arg("inv_freq"), py::arg("attention_scaling") = 1.0f, py::arg("interleaved") = false);
}

void register_attention(py::module_& m) {
  py::class_<cpu::Attention, std::shared_ptr<cpu::Attention>>(m, "Attention")
      .def("forward", &attention_forward, py::arg("context"), py::arg("x"), py::arg("position"),
           py::arg("sequence"), py::arg("rounding"), py::arg("sequences"), py::arg("layer"),
           "x: [m, hidden] -> [m, hidden]; the positions must already be part of their sequences.")
      .def_property_readonly("kv_widths", [](const cpu::Attention& op) {
        const cpu::KvSpec spec = op.kv_spec();
        return std::tuple(spec.k_width, spec.v_width, spec.heads);
      });

  using LinearPtr = std::shared_ptr<cpu::Linear>;
  using NormPtr = std::shared_ptr<cpu::RmsNorm>;
  using RopePtr = std::shared_ptr<cpu::Rope>;
  py::class_<cpu::GqaAttention, cpu::Attention, std::shared_ptr<cpu::GqaAttention>>(m, "GqaAttention")
      .def(py::init([](LinearPtr q, LinearPtr k, LinearPtr v, LinearPtr o, RopePtr rope,
                       int num_heads, int num_kv_heads, int head_dim, float scale, NormPtr q_norm,
                       NormPtr k_norm) {
             return std::make_shared<cpu::GqaAttention>(
                 cpu::GqaWeights{q, k, v, o, q_norm, k_norm, rope, num_heads, num_kv_heads,
                                 head_dim, scale});
           }),
           py::arg("q"), py::arg("k"), py::arg("v"), py::arg("o"), py::arg("rope"), py::kw_only(),
           py::arg("num_heads"), py::arg("num_kv_heads"), py::arg("head_dim"), py::arg("scale"),
           py::arg("q_norm") = nullptr, py::arg("k_norm") = nullptr);

  py::class_<cpu::MlaAttention, cpu::Attention, std::shared_ptr<cpu::MlaAttention>>(m, "MlaAttention")
      .def(py::init([](LinearPtr q, LinearPtr q_a, NormPtr q_a_norm, LinearPtr q_b, LinearPtr kv_a,
                       NormPtr kv_a_norm, LinearPtr kv_b,
                       const std::vector<std::shared_ptr<cpu::Matrix>>& k_b,
                       const std::vector<std::shared_ptr<cpu::Matrix>>& v_b, LinearPtr o,
                       RopePtr rope, int num_heads, int kv_lora_rank, int qk_nope_head_dim,
                       int qk_rope_head_dim, int v_head_dim, float scale, const std::string& expand) {
             cpu::MlaWeights w;
             w.q = q, w.q_a = q_a, w.q_b = q_b, w.q_a_norm = q_a_norm;
             w.kv_a = kv_a, w.kv_a_norm = kv_a_norm, w.kv_b = kv_b, w.o = o, w.rope = rope;
             w.k_b.assign(k_b.begin(), k_b.end());
             w.v_b.assign(v_b.begin(), v_b.end());
             w.num_heads = num_heads, w.kv_lora_rank = kv_lora_rank;
             w.qk_nope_head_dim = qk_nope_head_dim, w.qk_rope_head_dim = qk_rope_head_dim;
             w.v_head_dim = v_head_dim, w.scale = scale;
             KT_CHECK(expand == "long_prompts" || expand == "never" || expand == "always",
                      "MLA: expand is long_prompts, never or always, not ", expand);
             w.expand = expand == "never"    ? cpu::Expand::kNever
                        : expand == "always" ? cpu::Expand::kAlways
                                             : cpu::Expand::kLongPrompts;
             return std::make_shared<cpu::MlaAttention>(std::move(w));
           }),
           py::kw_only(), py::arg("q") = nullptr, py::arg("q_a") = nullptr,
           py::arg("q_a_norm") = nullptr, py::arg("q_b") = nullptr, py::arg("kv_a"),
           py::arg("kv_a_norm"), py::arg("kv_b") = nullptr,
           py::arg("k_b") = std::vector<std::shared_ptr<cpu::Matrix>>{},
           py::arg("v_b") = std::vector<std::shared_ptr<cpu::Matrix>>{}, py::arg("o"),
           py::arg("rope"), py::arg("num_heads"), py::arg("kv_lora_rank"),
           py::arg("qk_nope_head_dim"), py::arg("qk_rope_head_dim"), py::arg("v_head_dim"),
           py::arg("scale"), py::arg("expand") = "long_prompts");
}

void register_ffn(py::module_& m) {
  using LinearPtr = std::shared_ptr<cpu::Linear>;
  py::class_<cpu::FeedForward, std::shared_ptr<cpu::FeedForward>>(m, "FeedForward")
      .def("forward", &feed_forward, py::arg("context"), py::arg("x"), py::arg("rounding"),
           "x: [m, hidden], rounding: [m] -> [m, hidden].");
  py::class_<cpu::Mlp, cpu::FeedForward, std::shared_ptr<cpu::Mlp>>(m, "Mlp")
      .def(py::init([](LinearPtr gate, LinearPtr up, LinearPtr down) {
             return std::make_shared<cpu::Mlp>(gate, up, down);
           }),
           py::arg("gate"), py::arg("up"), py::arg("down"));

  py::class_<cpu::Router, std::shared_ptr<cpu::Router>>(m, "Router")
      .def(py::init([](LinearPtr weight, int num_experts_per_tok, bool sigmoid,
                       const py::object& bias, int n_group, int topk_group, bool group_sum_of_two,
                       bool norm_topk_prob, float routed_scaling_factor) {
             cpu::RouterOptions o;
             o.num_experts_per_tok = num_experts_per_tok;
             o.sigmoid = sigmoid;
             if (!bias.is_none()) o.bias = to_vector(bias.cast<FloatArray>());
             o.n_group = n_group;
             o.topk_group = topk_group;
             o.group_sum_of_two = group_sum_of_two;
             o.norm_topk_prob = norm_topk_prob;
             o.routed_scaling_factor = routed_scaling_factor;
             return std::make_shared<cpu::Router>(weight, std::move(o));
           }),
           py::arg("weight"), py::kw_only(), py::arg("num_experts_per_tok"),
           py::arg("sigmoid") = false, py::arg("bias") = py::none(), py::arg("n_group") = 1,
           py::arg("topk_group") = 1, py::arg("group_sum_of_two") = false,
           py::arg("norm_topk_prob") = false, py::arg("routed_scaling_factor") = 1.0f)
      .def("forward",
           [](const cpu::Router& router, Context& context, const FloatArray& x) {
             const int rows = rows_of(x, router.hidden_size(), "router");
             const py::ssize_t k = router.num_experts_per_tok();
             IntArray ids({py::ssize_t{rows}, k});
             FloatArray weights({py::ssize_t{rows}, k});
             const float* in = x.data();
             int32_t* chosen = ids.mutable_data();
             float* shares = weights.mutable_data();
             if (rows > 0) {
               const Running running(context);
               router.forward(context, in, rows, chosen, shares);
             }
             return std::pair(ids, weights);
           },
           "x: [m, hidden] -> (ids int32 [m, k], weights float32 [m, k]).");

  py::class_<cpu::Experts, std::shared_ptr<cpu::Experts>>(m, "Experts")
      .def(py::init([](const std::vector<std::shared_ptr<cpu::Matrix>>& gate,
                       const std::vector<std::shared_ptr<cpu::Matrix>>& up,
                       const std::vector<std::shared_ptr<cpu::Matrix>>& down) {
             KT_CHECK(gate.size() == up.size() && gate.size() == down.size(), "experts: ",
                      gate.size(), " gate, ", up.size(), " up, ", down.size(), " down matrices");
             std::vector<cpu::ExpertEntry> table;
             for (size_t e = 0; e < gate.size(); ++e)
               table.push_back({cpu::Where::kRam, true, gate[e], up[e], down[e]});
             return std::make_shared<cpu::Experts>(std::move(table));
           }),
           py::arg("gate"), py::arg("up"), py::arg("down"))
      .def_property_readonly("num_experts", &cpu::Experts::num_experts)
      .def("forward",
           [](const cpu::Experts& experts, Context& context, const FloatArray& x,
              const IntArray& ids, const FloatArray& weights, const ByteArray& rounding) {
             const int rows = rows_of(x, experts.hidden_size(), "experts");
             const Rounding* marks = roundings(rounding, rows);
             KT_CHECK(ids.ndim() == 2 && weights.ndim() == 2 && ids.shape(0) == rows &&
                          weights.shape(0) == rows && ids.shape(1) == weights.shape(1),
                      "experts: ids and weights must both be [", rows, ", k]");
             FloatArray out({py::ssize_t{rows}, py::ssize_t{experts.hidden_size()}});
             if (rows == 0) return out;
             float* y = out.mutable_data();
             const float* in = x.data();
             const int k = static_cast<int>(ids.shape(1));
             const int32_t* chosen = ids.data();
             const float* shares = weights.data();
             const Running running(context);
             experts.forward(context, in, rows, k, chosen, shares, marks, y);
             return out;
           },
           py::arg("context"), py::arg("x"), py::arg("ids"), py::arg("weights"),
           py::arg("rounding"));

  py::class_<cpu::MoeBlock, cpu::FeedForward, std::shared_ptr<cpu::MoeBlock>>(m, "MoeBlock")
      .def(py::init([](std::shared_ptr<cpu::Router> router, std::shared_ptr<cpu::Experts> experts,
                       std::shared_ptr<cpu::Mlp> shared, LinearPtr shared_gate) {
             return std::make_shared<cpu::MoeBlock>(router, experts, shared, shared_gate);
           }),
           py::arg("router"), py::arg("experts"), py::arg("shared") = nullptr,
           py::arg("shared_gate") = nullptr);
}

py::dict cpu_info() {
  py::dict info;
  py::list isas;
  for (int i = 0; i < cpu::isa_count(); ++i) {
    const cpu::Isa& isa = cpu::isa_at(i);
    py::dict row;
    row["name"] = isa.name;
    row["usable"] = isa.usable;
    row["missing"] = isa.missing ? py::object(py::str(isa.missing)) : py::none();
    row["stands_for"] = isa.stands_for ? py::object(py::str(isa.stands_for)) : py::none();
    isas.append(row);
  }
  info["isas"] = isas;
  info["isa"] = cpu::kernels().name;
  info["cores"] = os::usable_cores().size();
  info["cpus"] = os::usable_cpus().size();
  info["quota"] = os::cgroup_cpu_quota();
  info["default_threads"] = cpu::Pool::default_threads();
  int nodes = 0;
  for (const os::Cpu& cpu : os::usable_cpus()) nodes = std::max(nodes, cpu.node + 1);
  info["numa_nodes"] = nodes;
  info["amx"] = os::request_amx();
  return info;
}

}  // namespace

void register_cpu(py::module_& module) {
  py::class_<Context, std::shared_ptr<Context>>(
      module, "Context", "Worker threads, the chosen instruction set, and scratch memory.")
      .def(py::init<int, std::vector<int>>(), py::arg("threads") = 0,
           py::arg("nodes") = std::vector<int>{})
      .def_property_readonly("threads", [](const Context& c) { return c.pool.threads(); })
      .def_property_readonly("decode_threads",
                             [](const Context& c) { return c.tuner.decode_threads(); },
                             "Threads for generated tokens, as far as they have been tried.")
      .def_property_readonly("isa", [](const Context& c) { return c.kernels.name; })
      .def_property_readonly("nodes", [](const Context& c) {
        return std::vector<int>(c.pool.nodes().begin(), c.pool.nodes().end());
      });
  module.def("checksum", &checksum_of, py::arg("context"), py::arg("data"), py::arg("place") = 0,
             "Of bytes; place: how many 8-byte words of the whole are before them. The checksums of "
             "parts add up, modulo 2**64.");
  module.def(
      "memory_info",
      [] {
        const os::MemoryInfo info = os::memory_info();
        py::dict out;
        out["total"] = info.total;
        out["available"] = info.available;
        out["swap_used"] = info.swap_used;
        out["is_grouped"] = info.is_grouped;
        out["numa_balancing"] = info.numa_balancing;
        return out;
      },
      "Bytes of memory this process may have in all and now, swap in use, NUMA balancing.");
  module.def("cpu_info", &cpu_info,
             "Instruction sets, cores, quota and nodes of this process's machine.");
  py::enum_<Arithmetic>(module, "Arithmetic")
      .value("AUTO", Arithmetic::kAuto)
      .value("EXACT", Arithmetic::kExact)
      .value("F32", Arithmetic::kF32);
  module.def(
      "rounding",
      [](Arithmetic arithmetic, const IntArray& position, bool is_prompt) {
        ByteArray out(position.size());
        for (py::ssize_t i = 0; i < position.size(); ++i)
          out.mutable_data()[i] =
              static_cast<uint8_t>(program::rounding_of(arithmetic, position.data()[i], is_prompt));
        return out;
      },
      py::arg("arithmetic"), py::arg("position"), py::arg("is_prompt"),
      "How rows at these positions are rounded: [m] marks for the operators' forward.");
  module.attr("R16_VERSION") = py::int_(quant::R16<quant::Q4_K>::kVersion);
  register_weights(module);
  register_attention(module);
  register_ffn(module);
}

}  // namespace kt::bind
