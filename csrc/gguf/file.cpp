#include "gguf/file.h"

#include <algorithm>
#include <cmath>

#include "gguf/cursor.h"

namespace kt::gguf {
namespace {

constexpr int64_t kMaxParts = 1000;  // the largest split models known have some 200

std::optional<int64_t> integer(const Value& value) {
  if (!value.is_integer()) return std::nullopt;
  if (value.type == ValueType::kU64) {
    const auto wide = load_number<uint64_t>(value.type, value.bytes.data());
    if (wide > INT64_MAX) return INT64_MAX;  // out of every range anybody asks for
    return static_cast<int64_t>(wide);
  }
  return load_number<int64_t>(value.type, value.bytes.data());
}

std::optional<int64_t> int_in(const Value* value, const std::string& file, std::string_view key,
                              int64_t least, int64_t most) {
  if (value == nullptr) return std::nullopt;
  const std::optional<int64_t> number = integer(*value);
  KT_CHECK_FORMAT(number, file, ": key ", quoted(key), " is of type ", value_type_name(value->type),
                  ", must be an integer", kDownloadAgain);
  KT_CHECK_FORMAT(*number >= least && *number <= most, file, ": key ", quoted(key), " is ", *number,
                  ", must be ", least, " to ", most, kDownloadAgain);
  return number;
}

// Keys that describe the file and not the model: they may differ between the parts.
bool is_of_one_part(std::string_view key) {
  return key.starts_with("split.") || key == "general.alignment";
}

}  // namespace

File::File(const std::vector<std::string>& paths) {
  KT_CHECK(!paths.empty(), "no GGUF file given");
  KT_CHECK(paths.size() <= static_cast<size_t>(kMaxParts), paths.front(), ": ", paths.size(),
           " files given, a split model has at most ", kMaxParts);
  for (const std::string& path : paths) {
    const os::FileMap& map = maps_.emplace_back(path);
    readers_.emplace_back(map.bytes(), path);
  }
  check_split();
  merge();
}

File File::over(std::span<const std::span<const uint8_t>> parts) {
  KT_CHECK(!parts.empty() && parts.size() <= static_cast<size_t>(kMaxParts), "no parts, or over ",
           kMaxParts);
  File file;
  for (const auto part : parts) {
    file.readers_.emplace_back(part, concat("memory", file.readers_.size() + 1));
  }
  file.check_split();
  file.merge();
  return file;
}

void File::check_split() const {
  const auto given = static_cast<int64_t>(readers_.size());
  int64_t tensors = 0;
  for (const Reader& reader : readers_) tensors += static_cast<int64_t>(reader.tensors().size());

  for (int64_t i = 0; i < given; ++i) {
    const Reader& reader = readers_[static_cast<size_t>(i)];
    const auto get = [&](const char* key, int64_t least, int64_t most) {
      return int_in(reader.find(key), reader.file(), key, least, most);
    };
    const auto count = get("split.count", 0, kMaxParts).value_or(0);
    if (given == 1 && count <= 1) return;  // 0 and 1 are both written for a model in one file
    KT_CHECK_FORMAT(count == given, reader.file(), ": belongs to a model split into ", count,
                    count == 1 ? " file, " : " files, ", given,
                    given == 1 ? " was given" : " were given",
                    "; put all parts of one model into one folder");
    const auto number = get("split.no", 0, kMaxParts);
    KT_CHECK_FORMAT(number == i, reader.file(), ": says it is part ", number ? *number + 1 : 0,
                    " of ", count, " and stands in the place of part ", i + 1,
                    "; the parts are swapped or one is there twice, download them again");
    const auto total = get("split.tensors.count", 0, INT32_MAX);
    KT_CHECK_FORMAT(!total || *total == tensors, reader.file(), ": says the model has ", *total,
                    " tensors, its ", given, " files have ", tensors,
                    "; the parts belong to different models, download them again");
  }
}

void File::merge() {
  // Sorted by name, so that what two parts both have lies side by side.
  struct PartKey {
    const Key* key;
    size_t part;
  };
  std::vector<PartKey> all;
  for (size_t part = 0; part < readers_.size(); ++part) {
    for (const Key& key : readers_[part].keys()) {
      if (part == 0 || !is_of_one_part(key.name)) all.push_back({&key, part});
    }
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const PartKey& a, const PartKey& b) { return a.key->name < b.key->name; });
  keys_.reserve(all.size());
  for (const PartKey& item : all) {
    if (keys_.empty() || keys_.back().name != item.key->name) {
      keys_.push_back(*item.key);
      continue;
    }
    KT_CHECK_FORMAT(keys_.back().value == item.key->value, readers_[item.part].file(), ": key ",
                    quoted(item.key->name), " differs from that of ", path(),
                    "; the parts belong to different models, download them again");
  }

  for (size_t part = 0; part < readers_.size(); ++part) {
    for (const Tensor& tensor : readers_[part].tensors()) tensors_.push_back({&tensor, part});
  }
  if (readers_.size() == 1) return;  // the reader has refused duplicates inside one file
  std::vector<TensorRef> sorted = tensors_;
  std::sort(sorted.begin(), sorted.end(),
            [](const TensorRef& a, const TensorRef& b) { return a.tensor->name < b.tensor->name; });
  for (size_t i = 1; i < sorted.size(); ++i) {
    KT_CHECK_FORMAT(sorted[i - 1].tensor->name != sorted[i].tensor->name, path(), ": tensor ",
                    quoted(sorted[i].tensor->name), " is in two parts of the model, ",
                    readers_[sorted[i - 1].part].file(), " and ", readers_[sorted[i].part].file(),
                    "; download them again");
  }
}

const Value* File::find(std::string_view key) const {
  const auto at =
      std::lower_bound(keys_.begin(), keys_.end(), key,
                       [](const Key& item, std::string_view wanted) { return item.name < wanted; });
  return at != keys_.end() && at->name == key ? &at->value : nullptr;
}

std::optional<TensorRef> File::find_tensor(std::string_view name) const {
  for (size_t part = 0; part < readers_.size(); ++part) {
    if (const Tensor* tensor = readers_[part].find_tensor(name)) return TensorRef{tensor, part};
  }
  return std::nullopt;
}

TensorRef File::tensor(std::string_view name) const {
  const std::optional<TensorRef> found = find_tensor(name);
  KT_CHECK(found, path(), ": has no tensor ", quoted(name));
  return *found;
}

std::optional<int64_t> find_int(const File& file, std::string_view key, int64_t least,
                                int64_t most) {
  return int_in(file.find(key), file.path(), key, least, most);
}

std::optional<double> find_float(const File& file, std::string_view key, double least,
                                 double most) {
  const Value* value = file.find(key);
  if (value == nullptr) return std::nullopt;
  const bool is_number =
      value->is_integer() || value->type == ValueType::kF32 || value->type == ValueType::kF64;
  KT_CHECK_FORMAT(is_number, file.path(), ": key ", quoted(key), " is of type ",
                  value_type_name(value->type), ", must be a number", kDownloadAgain);
  const auto number = load_number<double>(value->type, value->bytes.data());
  KT_CHECK_FORMAT(std::isfinite(number) && number >= least && number <= most, file.path(), ": key ",
                  quoted(key), " is ", number, ", must be ", least, " to ", most, kDownloadAgain);
  return number;
}

std::optional<std::string_view> find_string(const File& file, std::string_view key) {
  const Value* value = file.find(key);
  if (value == nullptr) return std::nullopt;
  KT_CHECK_FORMAT(value->type == ValueType::kString, file.path(), ": key ", quoted(key),
                  " is of type ", value_type_name(value->type), ", must be a string",
                  kDownloadAgain);
  return std::string_view(reinterpret_cast<const char*>(value->bytes.data()), value->bytes.size());
}

}  // namespace kt::gguf
