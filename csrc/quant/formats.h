// What the rest of the core may ask about the listed formats at run time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "quant/list.h"
#include "quant/refused.h"

namespace kt::quant {

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
  if (!found) throw unsupported_format(gguf_id);
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
  if (id < 0) throw Unsupported(concat("weight type '", name, "' is not one of ", known));
  return id;
}

}  // namespace kt::quant
