// libFuzzer harness of the GGUF reader; tests/tools/fuzz.sh builds and runs it.
//
// The input is a GGUF file, or several parts of a split model with kSeparator between them. What
// the reader accepts must be usable: every key and tensor is found by name, every value and the
// ends of every tensor's data are read. Anything thrown but kt::Error, and anything ASan or UBSan
// sees, is a finding; so is memory beyond -malloc_limit_mb.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "gguf/file.h"
#include "gguf/model_check.h"

namespace {

using kt::gguf::File;

constexpr std::string_view kSeparator = "\n--next part--\n";

void require(bool condition) {
  if (!condition) abort();
}

volatile uint64_t sink;  // reads must happen

void use_key(const File& file, const kt::gguf::Key& key) {
  const kt::gguf::Value* value = file.find(key.name);
  require(value != nullptr);
  uint64_t sum = 0;
  if (value->element == kt::gguf::ValueType::kString) {
    kt::gguf::for_each_string(*value, [&](std::string_view text) {
      if (!text.empty()) sum += static_cast<uint8_t>(text.front() ^ text.back());
    });
  } else {
    const size_t each = kt::gguf::value_bytes(value->element);
    require(value->bytes.size() / each == value->count && value->bytes.size() % each == 0);
    for (const uint8_t byte : value->bytes) sum += byte;
  }
  sink = sum;
  try {
    kt::gguf::find_int(file, key.name, -100, 100);
    kt::gguf::find_float(file, key.name, -1, 1);
    kt::gguf::find_string(file, key.name);
  } catch (const kt::FormatError&) {
  }
}

void use_tensor(const File& file, const kt::gguf::TensorRef& ref) {
  const kt::gguf::Tensor& tensor = *ref.tensor;
  require(file.tensor(tensor.name).tensor == &tensor);
  const auto data = file.data(ref);
  require(!data.empty() && data.size() == tensor.bytes);
  sink = data.front() + data.back();
  uint64_t values = 1;
  for (const uint64_t n : tensor.ne) values *= n;
  const uint64_t blocks = values / static_cast<uint64_t>(tensor.type->values_per_block);
  require(data.size() / tensor.type->bytes_per_block == blocks);
  require(data.size() % tensor.type->bytes_per_block == 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  std::vector<std::span<const uint8_t>> parts;
  while (parts.size() < 8) {
    const size_t end = rest.find(kSeparator);
    parts.emplace_back(reinterpret_cast<const uint8_t*>(rest.data()), std::min(end, rest.size()));
    if (end == std::string_view::npos) break;
    rest.remove_prefix(end + kSeparator.size());
  }
  try {
    const File file = File::over(parts);
    for (const kt::gguf::Key& key : file.keys()) use_key(file, key);
    for (const kt::gguf::TensorRef& ref : file.tensors()) use_tensor(file, ref);
    kt::gguf::check_model(file);
  } catch (const kt::Error&) {
  }
  return 0;
}
