// What module.cpp calls: one function per area.
#pragma once

#include <pybind11/pybind11.h>

namespace kt::bind {

void register_gguf(pybind11::module_& module);
void register_quant(pybind11::module_& module);
void register_packed(pybind11::module_& module);
void register_bench(pybind11::module_& module);
void register_cpu(pybind11::module_& module);
void register_program(pybind11::module_& module);
void register_streams(pybind11::module_& module);
void register_rules(pybind11::module_& module);

}  // namespace kt::bind
