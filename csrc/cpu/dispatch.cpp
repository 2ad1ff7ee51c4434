// Chooses the instruction set at start. Built with baseline flags: nothing here may assume a CPU.
#include <initializer_list>
#include <string>

#include "base/error.h"
#include "base/os.h"
#include "cpu/isa.h"

namespace kt::cpu {

#define KT_DECLARE_ISA(isa) \
  namespace isa {           \
  extern const KernelTable kTable; \
  }
KT_DECLARE_ISA(avx512)
KT_DECLARE_ISA(avx2)
KT_DECLARE_ISA(scalar)
#undef KT_DECLARE_ISA

namespace {

struct Feature {
  const char* name;
  bool present;
};

const char* first_missing(std::initializer_list<Feature> features) {
  for (const Feature& feature : features) {
    if (!feature.present) return feature.name;
  }
  return nullptr;
}

struct Entry {
  Isa isa;
  const KernelTable* table;
};

constexpr int kNumIsas = 3;

struct Entries {
  Entry rows[kNumIsas];
};

// GCC's builtin reads CPUID and XGETBV, so an operating system that saves no vector state counts as
// a CPU without it.
const Entries& entries() {
  static const Entries table = [] {
    __builtin_cpu_init();
    const char* const no_avx512 =
        first_missing({{"avx512f", __builtin_cpu_supports("avx512f") != 0},
                       {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
                       {"avx512dq", __builtin_cpu_supports("avx512dq") != 0},
                       {"avx512vl", __builtin_cpu_supports("avx512vl") != 0},
                       {"avx512vnni", __builtin_cpu_supports("avx512vnni") != 0}});
    const char* const no_avx2 = first_missing({{"avx2", __builtin_cpu_supports("avx2") != 0},
                                               {"fma", __builtin_cpu_supports("fma") != 0},
                                               {"f16c", __builtin_cpu_supports("f16c") != 0}});
    return Entries{{{{"avx512", no_avx512 == nullptr, no_avx512}, &avx512::kTable},
                    {{"avx2", no_avx2 == nullptr, no_avx2}, &avx2::kTable},
                    {{"scalar", true, nullptr}, &scalar::kTable}}};
  }();
  return table;
}

}  // namespace

int isa_count() { return kNumIsas; }

const Isa& isa_at(int index) { return entries().rows[index].isa; }

const KernelTable& kernels_of(const std::string& name) {
  std::string choices;
  for (const Entry& entry : entries().rows) {
    if (name == entry.isa.name) {
      KT_CHECK(entry.isa.usable, "instruction set '", name, "': this machine lacks ",
               entry.isa.missing);
      return *entry.table;
    }
    if (entry.isa.usable) choices += std::string(choices.empty() ? "" : ", ") + entry.isa.name;
  }
  throw InvalidArgument(concat("instruction set '", name, "' is unknown; usable here: ", choices));
}

const KernelTable& kernels() {
  static const KernelTable& chosen = []() -> const KernelTable& {
    const std::string forced = os::environment("KT_CPU_ISA");
    if (!forced.empty()) {
      try {
        return kernels_of(forced);
      } catch (const InvalidArgument& error) {
        throw InvalidArgument(concat("KT_CPU_ISA: ", error.what()));
      }
    }
    for (const Entry& entry : entries().rows) {
      if (entry.isa.usable) return *entry.table;
    }
    return scalar::kTable;
  }();
  return chosen;
}

const FormatKernels& format_kernels(const KernelTable& table, int gguf_id) {
  for (int i = 0; i < table.num_formats; ++i) {
    if (table.formats[i].gguf_id == gguf_id) return table.formats[i];
  }
  throw Unsupported(concat("no kernels for weight type id ", gguf_id));
}

}  // namespace kt::cpu
