// What torch does for a module's hooks, where native taps are the only ones: at a fraction of torch's own price, which is
// more than that of a small tensor's tap.
//
// Taps are hooks of their modules like any others, in the order in which all were put on, and whoever looks at a module's
// hooks finds them. torch asks each module first for a callable in its place (`_compiled_call_impl`, where Module.compile()
// puts its own). A TappedCall there looks at the module's hooks: if they are the taps and nothing else, it calls the taps and
// the module's forward(), as Module._call_impl would; if not, it calls _call_impl.
//
// Contract
//   Needs the GIL. A TappedCall holds its module. `__dict__` copied to another module (as torch.nn.DataParallel makes its
//   replicas) holds the TappedCall too: such a module is told from its own, and called as if there were none.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

namespace nsf {

namespace py = pybind11;

struct Session;

// before, after: the callables of make_tap() that are the module's forward pre-hooks (with keyword arguments) and hooks.
// The caller keeps one reference and puts another into the module's __dict__.
py::object make_tapped_call(const std::shared_ptr<Session>& session, const py::object& module,
                            const py::tuple& before, const py::tuple& after);

}  // namespace nsf
