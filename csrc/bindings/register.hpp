// One function a topic; module.cpp calls them.
#pragma once

#include <pybind11/pybind11.h>

namespace nsf {

void register_session(pybind11::module_& module);
void register_functions(pybind11::module_& module);
void register_reductions(pybind11::module_& module);

}  // namespace nsf
