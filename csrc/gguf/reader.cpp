#include "gguf/reader.h"

#include <algorithm>
#include <numeric>

#include "base/checked.h"
#include "gguf/cursor.h"
#include "gguf/sniff.h"

namespace kt::gguf {
namespace {

// The least bytes an entry can take; counts that need more than the file has are lies.
constexpr uint64_t kLeastKeyBytes = 8 + 1 + 4 + 1;             // length, 1 character, type, u8
constexpr uint64_t kLeastTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;  // name, dims, one ne, type, offset

void check_name(const Cursor& cursor, uint64_t place, const char* what, std::string_view name) {
  if (name.empty()) cursor.refuse(place, what, " is empty", kDownloadAgain);
  const bool printable = std::all_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) >= 0x20 && c != 0x7F;
  });
  if (!printable || !is_utf8(name)) {
    cursor.refuse(place, what, " ", quoted(name), " is not printable UTF-8", kDownloadAgain);
  }
}

ValueType read_type(Cursor& cursor, std::string_view key) {
  const uint64_t place = cursor.position();
  const uint32_t type = cursor.read<uint32_t>("value type");
  if (type >= kNumValueTypes) {
    cursor.refuse(place, "key ", quoted(key), " has value type ", type, ", known are 0 to ",
                  kNumValueTypes - 1, kDownloadAgain);
  }
  return static_cast<ValueType>(type);
}

void check_bools(const Cursor& cursor, uint64_t place, std::string_view key,
                 std::span<const uint8_t> bytes) {
  for (const uint8_t byte : bytes) {
    if (byte > 1) {
      cursor.refuse(place, "key ", quoted(key), " has the boolean ", int{byte}, ", must be 0 or 1",
                    kDownloadAgain);
    }
  }
}

// Elements of an array; `value.bytes` ends up covering exactly them.
void read_array(Cursor& cursor, std::string_view key, Value& value) {
  value.element = read_type(cursor, key);
  if (value.element == ValueType::kArray) {
    throw Unsupported(concat(cursor.file(), ": key ", quoted(key),
                             " is an array of arrays, which no known model has"));
  }
  const uint64_t place = cursor.position();
  value.count = cursor.read<uint64_t>("array count");
  const uint64_t start = cursor.position();
  if (const size_t each = value_bytes(value.element)) {
    // A count whose bytes would not even fit 64 bits is refused like any other that is too large.
    const uint64_t most = cursor.remaining() / each;
    if (value.count > most) {
      cursor.refuse(place, "key ", quoted(key), " claims ", value.count, " values of type ",
                    value_type_name(value.element), ", the file has room for ", most,
                    kDownloadAgain);
    }
    value.bytes = cursor.take(value.count * each, "array");
    if (value.element == ValueType::kBool) check_bools(cursor, start, key, value.bytes);
    return;
  }
  if (value.count > kMaxStrings || value.count > cursor.remaining() / 8) {
    cursor.refuse(place, "key ", quoted(key), " claims ", value.count, " strings, with ",
                  cursor.remaining(), " bytes left and at most ", kMaxStrings, " allowed",
                  kDownloadAgain);
  }
  Cursor strings = cursor;
  for (uint64_t i = 0; i < value.count; ++i) strings.read_string(UINT64_MAX, "string in array");
  value.bytes = cursor.take(strings.position() - start, "array");
}

Value read_value(Cursor& cursor, std::string_view key) {
  Value value;
  value.type = value.element = read_type(cursor, key);
  if (value.type == ValueType::kArray) {
    read_array(cursor, key, value);
  } else if (value.type == ValueType::kString) {
    const std::string_view text = cursor.read_string(UINT64_MAX, "string value");
    value.bytes = {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
  } else {
    const uint64_t place = cursor.position();
    value.bytes = cursor.take(value_bytes(value.type), "value");
    if (value.type == ValueType::kBool) check_bools(cursor, place, key, value.bytes);
  }
  return value;
}

uint64_t read_alignment(const Value* value, const std::string& file) {
  if (value == nullptr) return kDefaultAlignment;
  KT_CHECK_FORMAT(value->type == ValueType::kU32, file, ": key 'general.alignment' is ",
                  value_type_name(value->type), ", must be u32", kDownloadAgain);
  const uint64_t alignment = load_number<uint64_t>(value->type, value->bytes.data());
  KT_CHECK_FORMAT(alignment >= kMinAlignment && alignment <= kMaxAlignment &&
                      (alignment & (alignment - 1)) == 0,
                  file, ": key 'general.alignment' is ", alignment,
                  ", must be a power of two from ", kMinAlignment, " to ", kMaxAlignment,
                  kDownloadAgain);
  return alignment;
}

// One tensor entry; `offset` is still relative to the data section.
Tensor read_tensor(Cursor& cursor, const std::string& file, const char* sizes) {
  Tensor tensor{};
  uint64_t place = cursor.position();
  tensor.name = cursor.read_string(kMaxNameBytes, "tensor name");
  check_name(cursor, place, "tensor name", tensor.name);

  place = cursor.position();
  const uint32_t num_dims = cursor.read<uint32_t>("number of dimensions");
  if (num_dims < 1 || num_dims > kMaxDims) {
    cursor.refuse(place, "tensor ", quoted(tensor.name), " has ", num_dims,
                  " dimensions, must be 1 to ", kMaxDims, kDownloadAgain);
  }
  tensor.num_dims = static_cast<int>(num_dims);
  uint64_t values = 1;
  for (uint32_t i = 0; i < kMaxDims; ++i) {
    place = cursor.position();
    tensor.ne[i] = i < num_dims ? cursor.read<uint64_t>("dimension") : 1;
    if (tensor.ne[i] == 0 || tensor.ne[i] > INT64_MAX / values) {
      cursor.refuse(place, "tensor ", quoted(tensor.name), " has dimension ", i, " = ",
                    tensor.ne[i], ", which makes no tensor", kDownloadAgain);
    }
    values *= tensor.ne[i];
  }

  place = cursor.position();
  const uint32_t type = cursor.read<uint32_t>("tensor type");
  tensor.type = find_tensor_type(type);
  if (tensor.type == nullptr) throw Unsupported(describe_unknown_type(file, tensor.name, type));
  const auto per_block = static_cast<uint64_t>(tensor.type->values_per_block);
  if (tensor.ne[0] % per_block != 0) {
    cursor.refuse(place, "tensor ", quoted(tensor.name), " has rows of ", tensor.ne[0],
                  " values, type ", tensor.type->name, " needs a multiple of ", per_block,
                  kDownloadAgain);
  }
  tensor.bytes = checked_mul(values / per_block, tensor.type->bytes_per_block, sizes);
  tensor.offset = cursor.read<uint64_t>("tensor offset");
  return tensor;
}

// Sorted positions of `items` by name; throws on a name that occurs twice.
template <class Item>
std::vector<uint32_t> index_by_name(const std::vector<Item>& items, const std::string& file,
                                    const char* what) {
  std::vector<uint32_t> order(items.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(),
            [&](uint32_t a, uint32_t b) { return items[a].name < items[b].name; });
  for (size_t i = 1; i < order.size(); ++i) {
    KT_CHECK_FORMAT(items[order[i - 1]].name != items[order[i]].name, file, ": ", what, " ",
                    quoted(items[order[i]].name), " occurs twice", kDownloadAgain);
  }
  return order;
}

template <class Item>
const Item* find_by_name(const std::vector<Item>& items, const std::vector<uint32_t>& order,
                         std::string_view name) {
  const auto at =
      std::lower_bound(order.begin(), order.end(), name,
                       [&](uint32_t i, std::string_view wanted) { return items[i].name < wanted; });
  return at != order.end() && items[*at].name == name ? &items[*at] : nullptr;
}

void check_no_overlap(const std::vector<Tensor>& tensors, const std::string& file) {
  std::vector<uint32_t> order(tensors.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(),
            [&](uint32_t a, uint32_t b) { return tensors[a].offset < tensors[b].offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    const Tensor& before = tensors[order[i - 1]];
    const Tensor& after = tensors[order[i]];
    KT_CHECK_FORMAT(before.offset + before.bytes <= after.offset, file, ": tensors ",
                    quoted(before.name), " and ", quoted(after.name), " overlap at byte ",
                    after.offset, kDownloadAgain);
  }
}

}  // namespace

Reader::Reader(std::span<const uint8_t> bytes, std::string file)
    : bytes_(bytes), file_(std::move(file)) {
  check_magic(bytes_, file_);
  Cursor cursor(bytes_, file_);
  cursor.take(4, "magic");
  version_ = cursor.read<uint32_t>("version");
  check_version(version_, file_);

  const uint64_t num_tensors = cursor.read<uint64_t>("tensor count");
  const uint64_t num_keys = cursor.read<uint64_t>("key count");
  if (num_tensors > kMaxTensors || num_tensors > cursor.remaining() / kLeastTensorBytes) {
    cursor.refuse(8, "the header claims ", num_tensors, " tensors, with ", cursor.remaining(),
                  " bytes left and at most ", kMaxTensors, " allowed", kDownloadAgain);
  }
  if (num_keys > kMaxKeys || num_keys > cursor.remaining() / kLeastKeyBytes) {
    cursor.refuse(16, "the header claims ", num_keys, " keys, with ", cursor.remaining(),
                  " bytes left and at most ", kMaxKeys, " allowed", kDownloadAgain);
  }

  keys_.reserve(num_keys);
  for (uint64_t i = 0; i < num_keys; ++i) {
    const uint64_t place = cursor.position();
    const std::string_view name = cursor.read_string(kMaxKeyBytes, "key");
    check_name(cursor, place, "key", name);
    keys_.push_back({name, read_value(cursor, name)});
  }
  key_order_ = index_by_name(keys_, file_, "key");
  alignment_ = read_alignment(find("general.alignment"), file_);

  const std::string sizes = file_ + ": tensor sizes and offsets";  // named if one of them wraps
  tensors_.reserve(num_tensors);
  for (uint64_t i = 0; i < num_tensors; ++i)
    tensors_.push_back(read_tensor(cursor, file_, sizes.c_str()));
  tensor_order_ = index_by_name(tensors_, file_, "tensor");

  const uint64_t data_start = checked_round_up(cursor.position(), alignment_, sizes.c_str());
  for (Tensor& tensor : tensors_) {
    KT_CHECK_FORMAT(tensor.offset % alignment_ == 0, file_, ": tensor ", quoted(tensor.name),
                    " has offset ", tensor.offset, ", not a multiple of the alignment ", alignment_,
                    kDownloadAgain);
    tensor.offset = checked_add(data_start, tensor.offset, sizes.c_str());
    const uint64_t end = checked_add(tensor.offset, tensor.bytes, sizes.c_str());
    KT_CHECK_FORMAT(end <= bytes_.size(), file_, ": tensor ", quoted(tensor.name), " ends at byte ",
                    end, ", the file has ", bytes_.size(), kDownloadAgain);
  }
  check_no_overlap(tensors_, file_);
}

const Value* Reader::find(std::string_view key) const {
  const Key* found = find_by_name(keys_, key_order_, key);
  return found == nullptr ? nullptr : &found->value;
}

const Tensor* Reader::find_tensor(std::string_view name) const {
  return find_by_name(tensors_, tensor_order_, name);
}

}  // namespace kt::gguf
