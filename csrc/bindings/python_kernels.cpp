#include "bindings/python_kernels.hpp"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "bindings/session.hpp"
#include "core/error.hpp"

namespace nsf {
namespace {

using namespace py::literals;

const char* kind_name(cuda::KernelKind kind) {
    return kind == cuda::KernelKind::quantize ? "quantize" : "gather_cast";
}

std::string text(DType dtype) { return std::string(name(dtype)); }

// The first line of what went wrong; the project's own errors need no class before it.
std::string one_line(const py::error_already_set& error) {
    const std::string message = py::str(error.value());
    const std::string line = message.substr(0, message.find('\n'));
    if (error.matches(capture_error())) return line;
    return py::str(error.type().attr("__name__")).cast<std::string>() + ": " + line;
}

// Python objects that live in a std::function are let go under the GIL, or not at all once Python is gone.
std::shared_ptr<PyObject> hold(const py::object& object) {
    return std::shared_ptr<PyObject>(object.inc_ref().ptr(), [](PyObject* held) {
        if (Py_IsInitialized() == 0) return;
        const py::gil_scoped_acquire acquired;
        Py_DECREF(held);
    });
}

void launch_through_triton(PyObject* kernel, unsigned grid, cuda::Stream stream,
                           const std::uint64_t* arguments, std::size_t count) {
    const py::gil_scoped_acquire acquired;
    py::tuple values(count);
    // As signed numbers: strides may be negative, and addresses are below 2^63.
    for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<std::int64_t>(arguments[i]);
    try {
        py::handle(kernel).attr("launch")(grid, reinterpret_cast<std::uintptr_t>(stream), values);
    } catch (const py::error_already_set& error) {
        throw EngineError("a kernel could not be launched through Triton: " + one_line(error));
    }
}

}  // namespace

cuda::KernelImage PythonKernels::make(const cuda::KernelRequest& request, int device) {
    const py::gil_scoped_acquire acquired;
    try {
        const py::object kernel =
            py::module_::import("neuroscope_fast.kernels.launch")
                .attr("load")(kind_name(request.kind), text(request.source), text(request.target),
                              "table"_a = request.table_dimension, "per_row"_a = request.per_row,
                              "write"_a = request.write, "rows"_a = request.rows,
                              "columns"_a = request.columns, "aligned"_a = request.aligned,
                              "e4m3_saturates"_a = request.rules.e4m3_saturates,
                              "e5m2_saturates"_a = request.rules.e5m2_saturates, "device"_a = device);
        cuda::KernelImage image;
        image.name = kernel.attr("name").cast<std::string>();
        const py::object cubin = kernel.attr("image");
        if (cubin.is_none()) {
            image.launch = [held = hold(kernel)](unsigned grid, cuda::Stream stream,
                                                 const std::uint64_t* arguments, std::size_t count) {
                launch_through_triton(held.get(), grid, stream, arguments, count);
            };
            return image;
        }
        image.image = cubin.cast<std::string>();
        image.warps = kernel.attr("warps").cast<unsigned>();
        image.shared_bytes = kernel.attr("shared").cast<unsigned>();
        image.trailing_pointers = kernel.attr("trailing_pointers").cast<std::size_t>();
        return image;
    } catch (const py::error_already_set& error) {
        if (error.matches(PyExc_KeyboardInterrupt)) throw;
        throw EngineError("no kernel for this tensor: " + one_line(error));
    }
}

}  // namespace nsf
