// Chooses the instruction set at start. Built with baseline flags: nothing here may assume a CPU.
#include <algorithm>
#include <initializer_list>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/os.h"
#include "cpu/isa.h"

namespace kt::cpu {

#define KT_DECLARE_ISA(isa) \
  namespace isa {           \
  extern const KernelTable kTable; \
  }
KT_DECLARE_ISA(amx)
KT_DECLARE_ISA(avx512bf16)
KT_DECLARE_ISA(avx512)
KT_DECLARE_ISA(avxvnni)
KT_DECLARE_ISA(avx2)
KT_DECLARE_ISA(amx_emulated)
KT_DECLARE_ISA(avxvnni_evex)
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

// A set's own kernels, and its parent's where it has none.
class WholeTable {
 public:
  WholeTable(const KernelTable& own, const KernelTable* parent) : table_(own) {
    if (!parent) return;
    formats_.assign(parent->formats, parent->formats + parent->num_formats);
    for (int i = 0; i < own.num_formats; ++i) take_format(own.formats[i]);
    table_.formats = formats_.data();
    table_.num_formats = static_cast<int>(formats_.size());
    take_missing(*parent);
  }
  WholeTable(const WholeTable&) = delete;

  const KernelTable& table() const { return table_; }

 private:
  void take_format(const FormatKernels& own) {
    for (FormatKernels& format : formats_) {
      if (format.gguf_id != own.gguf_id) continue;
      if (own.floats) format.floats = own.floats;
      if (own.few) {
        format.few = own.few;
        format.few_for_all = own.few_for_all;
      }
      if (own.many) format.many = own.many;
      if (own.unpack) format.unpack = own.unpack;
      if (own.transposed) format.transposed = own.transposed;
      if (own.transposed_halves) format.transposed_halves = own.transposed_halves;
    }
  }

  void take_missing(const KernelTable& parent) {
    static_assert(sizeof(KernelTable) == 29 * sizeof(void*), "a new kernel needs a line here");
    const auto take = [](auto& mine, const auto& theirs) {
      if (!mine) mine = theirs;
    };
    take(table_.quantize_exact, parent.quantize_exact);
    take(table_.quantize_digit, parent.quantize_digit);
    take(table_.rms_norm, parent.rms_norm);
    take(table_.swiglu, parent.swiglu);
    take(table_.axpy, parent.axpy);
    take(table_.dot, parent.dot);
    take(table_.softmax, parent.softmax);
    take(table_.sigmoid, parent.sigmoid);
    take(table_.block_max, parent.block_max);
    take(table_.block_exp_sum, parent.block_exp_sum);
    take(table_.attention, parent.attention);
    take(table_.attend_tile, parent.attend_tile);
    take(table_.fold_tiles, parent.fold_tiles);
    take(table_.score_tile, parent.score_tile);
    take(table_.put_tile, parent.put_tile);
    take(table_.get_tile, parent.get_tile);
    take(table_.round_int16, parent.round_int16);
    take(table_.store_kv, parent.store_kv);
    take(table_.load_kv, parent.load_kv);
    if (!table_.limits.read) table_.limits = parent.limits;
  }

  std::vector<FormatKernels> formats_;
  KernelTable table_;
};

struct Entry {
  Isa isa;
  const KernelTable* table;
};

constexpr int kNumIsas = 8;

struct Entries {
  Entry rows[kNumIsas];
};

// GCC's builtin reads CPUID and XGETBV, so an operating system that saves no vector state counts as
// a CPU without it.
const Entries& entries() {
  static const WholeTable avx512bf16_table(avx512bf16::kTable, &avx512::kTable);
  static const WholeTable amx_table(amx::kTable, &avx512bf16_table.table());
  static const WholeTable amx_emulated_table(amx_emulated::kTable, &avx512::kTable);
  static const WholeTable avxvnni_table(avxvnni::kTable, &avx2::kTable);
  static const WholeTable avxvnni_evex_table(avxvnni_evex::kTable, &avx2::kTable);
  static const Entries table = [] {
    __builtin_cpu_init();
    const char* const no_avx2 = first_missing({{"avx2", __builtin_cpu_supports("avx2") != 0},
                                               {"fma", __builtin_cpu_supports("fma") != 0},
                                               {"f16c", __builtin_cpu_supports("f16c") != 0}});
    const char* const no_avx512 =
        first_missing({{"avx512f", __builtin_cpu_supports("avx512f") != 0},
                       {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
                       {"avx512dq", __builtin_cpu_supports("avx512dq") != 0},
                       {"avx512vl", __builtin_cpu_supports("avx512vl") != 0},
                       {"avx512vnni", __builtin_cpu_supports("avx512vnni") != 0}});
    const auto over = [](const char* parents, std::initializer_list<Feature> features) {
      return parents ? parents : first_missing(features);
    };
    const char* const no_avx512bf16 =
        over(no_avx512, {{"avx512vbmi", __builtin_cpu_supports("avx512vbmi") != 0},
                         {"avx512bf16", __builtin_cpu_supports("avx512bf16") != 0}});
    const char* const no_amx_unit =
        over(no_avx512bf16, {{"amx-tile", __builtin_cpu_supports("amx-tile") != 0},
                             {"amx-int8", __builtin_cpu_supports("amx-int8") != 0}});
    const char* const no_amx =
        over(no_amx_unit, {{"the system's permission for AMX tiles",
                            no_amx_unit == nullptr && os::request_amx()}});
    const char* const no_avxvnni =
        over(no_avx2, {{"avxvnni", __builtin_cpu_supports("avxvnni") != 0}});
    const auto row = [](const char* name, const char* missing, const KernelTable& kernels,
                        const char* stands_for = nullptr) {
      return Entry{{name, missing == nullptr, missing, stands_for}, &kernels};
    };
    return Entries{{row("amx", no_amx, amx_table.table()),
                    row("avx512bf16", no_avx512bf16, avx512bf16_table.table()),
                    row("avx512", no_avx512, avx512::kTable),
                    row("avxvnni", no_avxvnni, avxvnni_table.table()),
                    row("avx2", no_avx2, avx2::kTable),
                    row("amx_emulated", no_avx512, amx_emulated_table.table(), "amx"),
                    row("avxvnni_evex", no_avx512, avxvnni_evex_table.table(), "avxvnni"),
                    row("scalar", nullptr, scalar::kTable)}};
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
      if (entry.isa.usable && !entry.isa.stands_for) return *entry.table;
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

void matmul(const FormatKernels& format, const MatmulTask& task) {
  if (task.rounding == Rounding::kFloat || format.group == 0) return format.floats(task);
  if (task.num_exact > 0 && format.few_for_all) {  // halves are not for `many`
    MatmulTask halves = task, digits = task;
    halves.rounding = Rounding::kExact;
    halves.num_tokens = task.num_exact;
    halves.num_exact = digits.num_exact = 0;
    halves.next[0] = halves.next[1] = nullptr;
    digits.num_tokens -= task.num_exact;
    digits.x += task.num_exact;
    digits.y += task.num_exact;
    matmul(format, halves);
    return matmul(format, digits);
  }
  const bool few = task.rounding == Rounding::kExact && format.few &&
                   (task.num_tokens <= kFewTokens || format.few_for_all);
  if (!few) return format.many(task, format);
  for (int first = 0; first < task.num_tokens; first += kFewTokens) {
    MatmulTask part = task;
    part.num_tokens = std::min(task.num_tokens - first, kFewTokens);
    if (first + kFewTokens < task.num_tokens) part.next[0] = part.next[1] = nullptr;
    part.x += first;
    part.y += first;
    format.few(part);
  }
}

}  // namespace kt::cpu
