// The list of weight formats, and what is derived from it. To add a format: write its header,
// include it here, add it to `Formats`.
//
// A format F is a struct of constants with a packed `F::Block`, described by free functions:
//   unpack(block, out)                    kValues floats: the truth, bit-exact with the GGUF format
//   unpack_ints(block, u, scale, min)     integer view, where kGroup > 0:
//       value[i] = scale[i / kGroup] * (u[i] - kOffset) + min[i / kGroup],  u in 0..255
//     kValues bytes, kValues / kGroup scales and (kHasMin) minima. kernels multiply u by integers.
//   kGroup   values that share a scale: 16 or 32 (a format with longer runs repeats its scale)
//   kMaxU    the largest u there can be (kernels: up to 127, pairs of products fit 16 bits)
//   kGgufId  the ggml_type number in a GGUF file
// All of them are `static inline` and free of library types, because kernel objects of every ISA
// include them (see base/half.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "quant/f32.h"
#include "quant/q2_k.h"
#include "quant/q3_k.h"
#include "quant/q4_0.h"
#include "quant/q4_1.h"
#include "quant/q4_k.h"
#include "quant/q5_0.h"
#include "quant/q5_1.h"
#include "quant/q5_k.h"
#include "quant/q6_k.h"
#include "quant/q8_0.h"

namespace kt::quant {

template <class... Fs>
struct TypeList {};

using Formats = TypeList<F32, F16, BF16,                        // plain floats
                         Q4_0, Q4_1, Q5_0, Q5_1, Q8_0,          // 32 values, one scale
                         Q2_K, Q3_K, Q4_K, Q5_K, Q6_K>;         // 256 values, two levels of scales

/// What the rest of the core may ask about a format at run time.
struct FormatInfo {
  const char* name;
  int gguf_id;
  int values_per_block;
  size_t bytes_per_block;
};

/// Calls visitor.template operator()<F>() for every format, in list order.
template <class Visitor, class... Fs>
void for_each_format(Visitor&& visitor, TypeList<Fs...>) {
  (visitor.template operator()<Fs>(), ...);
}

template <class Visitor>
void for_each_format(Visitor&& visitor) {
  for_each_format(visitor, Formats{});
}

/// Calls visitor.template operator()<F>() for the format with this GGUF id; throws Unsupported.
template <class Visitor>
void visit_format(int gguf_id, Visitor&& visitor) {
  bool found = false;
  for_each_format([&]<class F>() {
    if (F::kGgufId == gguf_id) {
      found = true;
      visitor.template operator()<F>();
    }
  });
  if (!found) throw Unsupported(concat("weight type id ", gguf_id, " is not supported"));
}

/// Facts of a format by GGUF id; nullptr where it is not in the list.
inline const FormatInfo* find_format(int gguf_id) {
  static constexpr auto table = []<class... Fs>(TypeList<Fs...>) {
    struct Table {
      FormatInfo rows[sizeof...(Fs)];
    };
    return Table{{{Fs::kName, Fs::kGgufId, Fs::kValues, sizeof(typename Fs::Block)}...}};
  }(Formats{});
  for (const FormatInfo& row : table.rows) {
    if (row.gguf_id == gguf_id) return &row;
  }
  return nullptr;
}

/// GGUF id of a format's name ("q4_1"); throws Unsupported listing the names there are.
inline int format_id(std::string_view name) {
  int id = -1;
  std::string known;
  for_each_format([&]<class F>() {
    if (name == F::kName) id = F::kGgufId;
    known += std::string(known.empty() ? "" : ", ") + F::kName;
  });
  if (id < 0) throw Unsupported(concat("weight type '", name, "' is not supported; known: ", known));
  return id;
}

}  // namespace kt::quant
