#include "gguf/format.h"

#include <array>
#include <vector>

#include "quant/formats.h"

namespace kt::gguf {
namespace {

// Numbers a GGUF may hold beside weights (index tables of drafts, say): stored, never multiplied.
constexpr TensorType kPlainTypes[] = {
    {"i8", 24, 1, 1}, {"i16", 25, 1, 2}, {"i32", 26, 1, 4}, {"i64", 27, 1, 8}, {"f64", 28, 1, 8}};
constexpr uint32_t kMaxTypeId = 1024;

using TypeTable = std::array<const TensorType*, kMaxTypeId>;

TypeTable build_table() {
  static std::vector<TensorType> weights;
  quant::for_each_format([]<class F>() {
    weights.push_back({F::kName, F::kGgufId, F::kValues, sizeof(typename F::Block)});
  });
  TypeTable table{};
  for (const TensorType& type : kPlainTypes) table[type.id] = &type;
  for (const TensorType& type : weights) table[type.id] = &type;
  return table;
}

}  // namespace

const TensorType* find_tensor_type(uint32_t id) {
  static const TypeTable table = build_table();
  return id < kMaxTypeId ? table[id] : nullptr;
}

uint32_t tensor_type_id(std::string_view name) {
  for (const TensorType& type : kPlainTypes) {
    if (name == type.name) return static_cast<uint32_t>(type.id);
  }
  return static_cast<uint32_t>(quant::format_id(name));
}

}  // namespace kt::gguf
