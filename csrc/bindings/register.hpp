// One function a topic; module.cpp calls them.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "core/dtype.hpp"

namespace nsf {

// Throws std::invalid_argument for what is no dtype's name.
DType parse_dtype(const std::string& text);

void register_records(pybind11::module_& module);
void register_session(pybind11::module_& module);
void register_graphs(pybind11::module_& module);
void register_computed_taps(pybind11::module_& module);
void register_functions(pybind11::module_& module);
void register_reductions(pybind11::module_& module);

}  // namespace nsf
