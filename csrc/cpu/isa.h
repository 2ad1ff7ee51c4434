// The instruction sets of this build and the choice between them.
#pragma once

#include <string>

#include "cpu/kernel_table.h"

namespace kt::cpu {

/// An instruction set this build has kernels for.
struct Isa {
  const char* name;
  bool usable;          // this CPU and kernel can run it
  const char* missing;  // the first feature that is not there, or nullptr
  /// The set whose source this is, compiled so that CPUs without its instructions can check what it
  /// computes; nullptr: a set in its own right. Only KT_CPU_ISA takes such a one.
  const char* stands_for;
};

/// All of them, best first; the plainest last.
int isa_count();
const Isa& isa_at(int index);

/// The kernels in use: the best usable ISA, or KT_CPU_ISA's. Throws InvalidArgument for a name that
/// is unknown or not usable here, listing the choices.
const KernelTable& kernels();

/// The kernels of one ISA by name, for tests; throws as kernels() does.
const KernelTable& kernels_of(const std::string& name);

/// The kernels of one format; throws Unsupported where the list has none.
const FormatKernels& format_kernels(const KernelTable& table, int gguf_id);

/// Runs the one of a format's kernels that is for the task's rounding and number of tokens. A row's
/// result does not depend on how many rows come with it.
void matmul(const FormatKernels& format, const MatmulTask& task);

}  // namespace kt::cpu
