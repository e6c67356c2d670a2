#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "bindings/computed_tap.hpp"
#include "bindings/register.hpp"

namespace nsf {
namespace {

// None for all rows, a list of indices, or such a list for each row of the batch.
py::object rows_object(const std::optional<Selection>& rows) {
    if (!rows) return py::none();
    if (rows->rows == 1) return py::cast(rows->indices);
    py::list lists;
    for (std::size_t row = 0; row < rows->rows; ++row) {
        const auto first = rows->indices.begin() + static_cast<std::ptrdiff_t>(row * rows->per_row);
        lists.append(
            py::cast(std::vector<std::int64_t>(first, first + static_cast<std::ptrdiff_t>(rows->per_row))));
    }
    return lists;
}

}  // namespace

void register_computed_taps(py::module_& module) {
    using namespace py::literals;
    py::class_<ComputedCall>(module, "ComputedCall", "One call of a module, of which records are wanted.")
        .def_property_readonly(
            "wanted",
            [](const ComputedCall& call) {
                py::list wanted;
                for (const ComputedCall::Wanted& each : call.wanted())
                    wanted.append(py::make_tuple(each.rule->stream, rows_object(each.rows)));
                return wanted;
            })
        .def_property_readonly("real",
                               [](const ComputedCall& call) {
                                   const auto* data = reinterpret_cast<const char*>(call.real().data());
                                   return py::bytes(data, call.real().size());
                               })
        .def_property_readonly("offset", &ComputedCall::offset)
        .def("store", &ComputedCall::store, "number"_a, "tensor"_a, "stream"_a = py::none());
    py::class_<ComputedTap, std::shared_ptr<ComputedTap>>(
        module, "ComputedTap", "A tap whose tensors are computed, as far as they are stored.")
        .def(
            "begin",
            [](const std::shared_ptr<ComputedTap>& tap, const py::object& hooked, const py::object& given,
               const Shape& shape) { return ComputedCall::begin(tap, hooked, given, shape); },
            "module"_a, "given"_a, "shape"_a);
}

}  // namespace nsf
