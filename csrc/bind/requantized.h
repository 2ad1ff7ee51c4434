// What converting a tensor did to its values, for Python.
#pragma once

#include <pybind11/pybind11.h>

#include "quant/requantize.h"

namespace kt::bind {

inline pybind11::dict facts_of(const quant::Requantized& result) {
  pybind11::dict facts;
  facts["error"] = result.error;
  facts["power"] = result.power;
  facts["largest"] = result.largest;
  facts["not_finite"] = result.not_finite;
  facts["out_of_range"] = result.out_of_range;
  return facts;
}

}  // namespace kt::bind
