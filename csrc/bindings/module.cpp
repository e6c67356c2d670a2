// neuroscope_fast._core: see _core.pyi for the Python face.
#include <pybind11/pybind11.h>

#include "bindings/register.hpp"

PYBIND11_MODULE(_core, module) {
    module.doc() = "The native engine of neuroscope-fast.";
    nsf::register_computed_taps(module);
    nsf::register_records(module);
    nsf::register_session(module);
    nsf::register_graphs(module);
    nsf::register_functions(module);
    nsf::register_reductions(module);
}
