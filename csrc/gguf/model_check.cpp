#include "gguf/model_check.h"

#include <algorithm>
#include <cmath>

#include "gguf/cursor.h"

namespace kt::gguf {
namespace {

// Bounds wide enough for any model and narrow enough that products of three stay below 2^63.
struct IntRange {
  const char* key;  // after "<architecture>."
  int64_t least, most;
  bool required;
};
constexpr IntRange kIntRanges[] = {
    {"block_count", 1, 1024, true},
    {"embedding_length", 1, 1 << 20, true},
    {"context_length", 1, 1ll << 32, false},
    {"vocab_size", 1, 1 << 24, false},
    {"leading_dense_block_count", 0, 1024, false},
    {"expert_count", 0, 1 << 14, false},
    {"expert_used_count", 0, 1 << 14, false},
    {"expert_shared_count", 0, 1 << 10, false},
    {"expert_group_count", 0, 1 << 14, false},
    {"expert_group_used_count", 0, 1 << 14, false},
    {"expert_feed_forward_length", 1, 1 << 24, false},
    {"expert_shared_feed_forward_length", 0, 1 << 24, false},
    {"expert_gating_func", 0, 16, false},
    {"attention.key_length", 1, 1 << 16, false},
    {"attention.value_length", 1, 1 << 16, false},
    {"attention.key_length_mla", 1, 1 << 16, false},
    {"attention.value_length_mla", 1, 1 << 16, false},
    {"attention.q_lora_rank", 1, 1 << 20, false},
    {"attention.kv_lora_rank", 1, 1 << 20, false},
    {"rope.dimension_count", 0, 1 << 16, false},
    {"rope.scaling.original_context_length", 1, 1ll << 32, false},
};

// Counts that may differ from layer to layer: one number, or one per layer.
struct PerLayer {
  const char* key;
  int64_t least, most;
};
constexpr PerLayer kPerLayer[] = {
    {"attention.head_count", 0, 1 << 14},
    {"attention.head_count_kv", 0, 1 << 14},
    {"feed_forward_length", 0, 1 << 24},
};

struct FloatRange {
  const char* key;
  double least, most;
};
constexpr FloatRange kFloatRanges[] = {
    {"attention.layer_norm_rms_epsilon", 0, 1},
    {"attention.layer_norm_epsilon", 0, 1},
    {"rope.freq_base", 1, 1e12},
    {"rope.scaling.factor", 0, 1e6},
    {"rope.scaling.attn_factor", 0, 1e6},
    {"rope.scaling.yarn_log_multiplier", 0, 1e6},
    {"expert_weights_scale", 0, 1e6},
};

void check_finite(const File& file, const Key& key) {
  const Value& value = key.value;
  if (value.element != ValueType::kF32 && value.element != ValueType::kF64) return;
  const size_t each = value_bytes(value.element);
  for (uint64_t i = 0; i < value.count; ++i) {
    const auto number = load_number<double>(value.element, value.bytes.data() + i * each);
    KT_CHECK_FORMAT(std::isfinite(number), file.path(), ": key ", quoted(key.name), " holds ",
                    number, ", must be finite", kDownloadAgain);
  }
}

void check_per_layer(const File& file, const std::string& key, const PerLayer& range,
                     int64_t num_layers) {
  const Value* value = file.find(key);
  if (value == nullptr || !value->is_array()) {
    find_int(file, key, range.least, range.most);
    return;
  }
  const Value probe{.type = value->element, .element = value->element, .count = 1, .bytes = {}};
  KT_CHECK_FORMAT(probe.is_integer(), file.path(), ": key ", quoted(key), " is an array of ",
                  value_type_name(value->element), ", must hold integers", kDownloadAgain);
  KT_CHECK_FORMAT(value->count == static_cast<uint64_t>(num_layers), file.path(), ": key ",
                  quoted(key), " has ", value->count, " values for ", num_layers, " layers",
                  kDownloadAgain);
  const size_t each = value_bytes(value->element);
  for (uint64_t i = 0; i < value->count; ++i) {
    const auto number = load_number<int64_t>(value->element, value->bytes.data() + i * each);
    KT_CHECK_FORMAT(number >= range.least && number <= range.most, file.path(), ": key ",
                    quoted(key), " is ", number, " in layer ", i, ", must be ", range.least, " to ",
                    range.most, kDownloadAgain);
  }
}

void check_expert_counts(const File& file, const std::string& prefix) {
  const auto get = [&](const char* key) { return find_int(file, prefix + key, 0, 1 << 14); };
  const auto experts = get("expert_count").value_or(0);
  const auto used = get("expert_used_count").value_or(0);
  KT_CHECK_FORMAT(used <= experts, file.path(), ": key '", prefix, "expert_used_count' is ", used,
                  ", the model has ", experts, " experts", kDownloadAgain);
  KT_CHECK_FORMAT(experts == 0 || used > 0, file.path(), ": key '", prefix,
                  "expert_used_count' is 0 or missing, the model has ", experts, " experts",
                  kDownloadAgain);
  const auto groups = get("expert_group_count").value_or(0);
  if (groups == 0) return;
  const auto groups_used = get("expert_group_used_count").value_or(1);
  KT_CHECK_FORMAT(experts % groups == 0, file.path(), ": key '", prefix, "expert_group_count' is ",
                  groups, ", which does not divide the ", experts, " experts", kDownloadAgain);
  KT_CHECK_FORMAT(groups_used >= 1 && groups_used <= groups, file.path(), ": key '", prefix,
                  "expert_group_used_count' is ", groups_used, ", must be 1 to ", groups,
                  kDownloadAgain);
}

void check_vocabulary(const File& file, const std::string& prefix) {
  const Value* tokens = file.find("tokenizer.ggml.tokens");
  if (tokens == nullptr) return;  // a folder of tokenizer files may stand in for it
  KT_CHECK_FORMAT(tokens->is_array() && tokens->element == ValueType::kString, file.path(),
                  ": key 'tokenizer.ggml.tokens' must be an array of strings", kDownloadAgain);
  const uint64_t count = tokens->count;
  KT_CHECK_FORMAT(count > 0, file.path(), ": key 'tokenizer.ggml.tokens' is empty", kDownloadAgain);

  if (const auto embedding = file.find_tensor("token_embd.weight")) {
    const Tensor& tensor = *embedding->tensor;
    KT_CHECK_FORMAT(tensor.num_dims == 2 && tensor.ne[1] == count, file.path(),
                    ": tensor 'token_embd.weight' has ", tensor.ne[1], " rows, the vocabulary has ",
                    count, " tokens", kDownloadAgain);
    const auto width = find_int(file, prefix + "embedding_length", 1, 1 << 20);
    KT_CHECK_FORMAT(!width || tensor.ne[0] == static_cast<uint64_t>(*width), file.path(),
                    ": tensor 'token_embd.weight' has ", tensor.ne[0], " columns, '", prefix,
                    "embedding_length' is ", *width, kDownloadAgain);
  }
  const auto size = find_int(file, prefix + "vocab_size", 1, 1 << 24);
  KT_CHECK_FORMAT(!size || static_cast<uint64_t>(*size) == count, file.path(), ": key '", prefix,
                  "vocab_size' is ", *size, ", the vocabulary has ", count, " tokens",
                  kDownloadAgain);

  for (const auto& [key, element] : {std::pair{"tokenizer.ggml.scores", ValueType::kF32},
                                     std::pair{"tokenizer.ggml.token_type", ValueType::kI32}}) {
    const Value* list = file.find(key);
    if (list == nullptr) continue;
    const bool is_unsigned_type = element == ValueType::kI32 && list->element == ValueType::kU32;
    KT_CHECK_FORMAT(list->is_array() && (list->element == element || is_unsigned_type), file.path(),
                    ": key '", key, "' must be an array of ", value_type_name(element),
                    kDownloadAgain);
    KT_CHECK_FORMAT(list->count == count, file.path(), ": key '", key, "' has ", list->count,
                    " values, the vocabulary has ", count, " tokens", kDownloadAgain);
  }
  if (const Value* merges = file.find("tokenizer.ggml.merges")) {
    KT_CHECK_FORMAT(merges->is_array() && merges->element == ValueType::kString, file.path(),
                    ": key 'tokenizer.ggml.merges' must be an array of strings", kDownloadAgain);
  }
  for (const Key& key : file.keys()) {
    if (!key.name.starts_with("tokenizer.ggml.") || !key.name.ends_with("_token_id")) continue;
    const auto id = *find_int(file, key.name, -1, UINT32_MAX);
    // -1, also as u32, is how some converters say "none".
    KT_CHECK_FORMAT(id == -1 || id == UINT32_MAX || static_cast<uint64_t>(id) < count, file.path(),
                    ": key ", quoted(key.name), " is ", id, ", the vocabulary has ", count,
                    " tokens", kDownloadAgain);
  }
}

}  // namespace

void check_model(const File& file) {
  const auto architecture = find_string(file, "general.architecture");
  KT_CHECK_FORMAT(architecture, file.path(), ": has no key 'general.architecture'",
                  "; it is not a model (an adapter or a table?), give the model's file");
  const bool plain =
      !architecture->empty() && architecture->size() <= 64 &&
      std::all_of(architecture->begin(), architecture->end(), [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
      });
  KT_CHECK_FORMAT(plain, file.path(), ": key 'general.architecture' is ", quoted(*architecture),
                  ", must be a plain name", kDownloadAgain);
  const std::string prefix = std::string(*architecture) + ".";

  for (const IntRange& range : kIntRanges) {
    const auto number = find_int(file, prefix + range.key, range.least, range.most);
    KT_CHECK_FORMAT(number || !range.required, file.path(), ": has no key '", prefix, range.key,
                    "'; it is no language model, or damaged: download another file of it");
  }
  const int64_t num_layers = *find_int(file, prefix + "block_count", 1, 1024);
  for (const PerLayer& range : kPerLayer) {
    check_per_layer(file, prefix + range.key, range, num_layers);
  }
  for (const FloatRange& range : kFloatRanges) {
    find_float(file, prefix + range.key, range.least, range.most);
  }
  for (const Key& key : file.keys()) {
    if (key.name.starts_with(prefix)) check_finite(file, key);
  }
  check_expert_counts(file, prefix);
  check_vocabulary(file, prefix);
}

}  // namespace kt::gguf
