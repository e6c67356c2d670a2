// What can be used without a capture: checksums, casts, and facts about the build.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/register.hpp"
#include "bindings/tensor_access.hpp"
#include "core/cast.hpp"
#include "core/checksum.hpp"
#include "core/element_reader.hpp"
#include "core/file_writer.hpp"

#ifndef NSF_COMPILE_FLAGS
#define NSF_COMPILE_FLAGS ""
#endif

namespace nsf {
namespace {

std::uint32_t checksum(const py::buffer& data, std::uint32_t initial) {
    Py_buffer view;
    if (PyObject_GetBuffer(data.ptr(), &view, PyBUF_SIMPLE) != 0) throw py::error_already_set();
    std::uint32_t crc = 0;
    {
        const py::gil_scoped_release released;
        crc = crc32c(initial, view.buf, static_cast<std::size_t>(view.len));
    }
    PyBuffer_Release(&view);
    return crc;
}

TensorAccess tensor_access_named(const std::string& name) {
    return TensorAccess(name == "attributes" ? TensorAccessMethod::attributes
                                             : TensorAccessMethod::automatic);
}

std::string scale_bytes(ElementReader& reader) {
    if (!reader.quantizes()) return {};
    const std::vector<float>& rows = reader.row_scales();
    return {reinterpret_cast<const char*>(rows.data()), rows.size() * sizeof(float)};
}

// The stored bytes of a tensor and, for an int8 cast of floats, of its row scales: exactly what a tap would
// write.
py::tuple cast_tensor(const py::object& tensor, const std::string& dtype, bool e4m3_saturates,
                      bool e5m2_saturates, const std::string& tensor_access) {
    const TensorAccess access = tensor_access_named(tensor_access);
    if (!access.is_tensor(tensor.ptr())) throw std::invalid_argument("not a torch tensor");
    const DType target = parse_dtype(dtype);
    py::object owner;
    const TensorView view = access.host_view(tensor.ptr(), owner);
    ElementReader reader(view, nullptr, target, CastRules{e4m3_saturates, e5m2_saturates});
    const std::string scales = scale_bytes(reader);
    std::string bytes(static_cast<std::size_t>(reader.elements()) * item_size(target), '\0');
    reader.read(reinterpret_cast<std::byte*>(bytes.data()), static_cast<std::size_t>(reader.elements()));
    return py::make_tuple(py::bytes(bytes), py::bytes(scales));
}

// The same into memory that the caller has, as a tap casts into a block of the ring: what a benchmark times.
py::bytes cast_into(const py::object& tensor, const std::string& dtype, const py::buffer& out,
                    bool e4m3_saturates, bool e5m2_saturates) {
    // Kept for good: making one imports torch, which a tap does not do at each call either.
    static const auto* const access = new TensorAccess(TensorAccessMethod::automatic);
    if (!access->is_tensor(tensor.ptr())) throw std::invalid_argument("not a torch tensor");
    const DType target = parse_dtype(dtype);
    py::object owner;
    const TensorView view = access->host_view(tensor.ptr(), owner);
    ElementReader reader(view, nullptr, target, CastRules{e4m3_saturates, e5m2_saturates});
    const std::size_t size = static_cast<std::size_t>(reader.elements()) * item_size(target);
    Py_buffer memory;
    if (PyObject_GetBuffer(out.ptr(), &memory, PyBUF_WRITABLE) != 0) throw py::error_already_set();
    const std::unique_ptr<Py_buffer, void (*)(Py_buffer*)> release(&memory, &PyBuffer_Release);
    if (static_cast<std::size_t>(memory.len) != size) {
        throw std::invalid_argument("the cast takes " + std::to_string(size) + " bytes, not " +
                                    std::to_string(memory.len));
    }
    std::string scales;
    {
        const py::gil_scoped_release released;
        scales = scale_bytes(reader);
        reader.read(static_cast<std::byte*>(memory.buf), static_cast<std::size_t>(reader.elements()));
    }
    return py::bytes(scales);
}

py::dict build_info() {
    using namespace py::literals;
    const char* level = "scalar";
    if (cpu_level() == CpuLevel::avx2) level = "avx2";
    if (cpu_level() == CpuLevel::avx512) level = "avx512";
    return py::dict("compiler"_a =
#if defined(__clang__)
                        "clang " __clang_version__,
#elif defined(__GNUC__)
                        "gcc " __VERSION__,
#else
                        "unknown",
#endif
                    "flags"_a = NSF_COMPILE_FLAGS, "cpu_level"_a = level,
                    "pybind11"_a = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(
                        PYBIND11_VERSION_MINOR));
}

}  // namespace

DType parse_dtype(const std::string& text) {
    const std::optional<DType> dtype = dtype_from_name(text);
    if (!dtype) throw std::invalid_argument("unknown dtype '" + text + "'");
    return *dtype;
}

void register_functions(py::module_& module) {
    using namespace py::literals;
    module.def("crc32c", &checksum, "data"_a, "initial"_a = 0,
               "CRC-32C of a contiguous buffer, continuing `initial`.");
    module.def("cast", &cast_tensor, "tensor"_a, "dtype"_a, "e4m3_saturates"_a = true,
               "e5m2_saturates"_a = false, "tensor_access"_a = "automatic",
               "(bytes, scale bytes) of a CPU tensor as a capture with this dtype would store it.");
    module.def(
        "cast_into", &cast_into, "tensor"_a, "dtype"_a, "out"_a, "e4m3_saturates"_a = true,
        "e5m2_saturates"_a = false,
        "Writes the bytes that `cast` gives to the writable buffer `out`, of their size; the scale bytes.");
    module.def("build_info", &build_info, "Compiler, flags and the vector level in use on this machine.");
    module.def(
        "supports_direct_io", &supports_direct_io, "folder"_a, py::call_guard<py::gil_scoped_release>(),
        "Whether files in a folder can be written with O_DIRECT (a temporary file is made and removed).");
}

}  // namespace nsf
