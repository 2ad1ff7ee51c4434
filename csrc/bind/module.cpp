// The Python module ktransformers._core. One register_<area>.cpp per room; nothing below knows Python.
#include "bind/register.h"

#include "base/error.h"

namespace {

// The core's errors become Python's, each once.
void register_errors(pybind11::module_& module) {
  namespace py = pybind11;
  static PyObject* format_error = nullptr;
  auto format_class = py::exception<kt::FormatError>(module, "FormatError", PyExc_ValueError);
  format_error = format_class.ptr();
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const kt::FormatError& e) {
      PyErr_SetString(format_error, e.what());
    } catch (const kt::InvalidArgument& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    } catch (const kt::Unsupported& e) {
      PyErr_SetString(PyExc_NotImplementedError, e.what());
    } catch (const kt::SystemError& e) {
      PyErr_SetString(PyExc_OSError, e.what());
    }
  });
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "The C++ core of ktransformers.";
  register_errors(module);
  kt::bind::register_quant(module);
  kt::bind::register_packed(module);
  kt::bind::register_cpu(module);
  kt::bind::register_bench(module);
  kt::bind::register_program(module);
  kt::bind::register_streams(module);
  kt::bind::register_rules(module);
  kt::bind::register_gguf(module);
}
