// The reduction over heads, for those who want its result without a capture.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/register.hpp"
#include "bindings/tensor_access.hpp"
#include "core/head_reduce.hpp"

namespace nsf {
namespace {

// The stored bytes of a reduction of a CPU tensor, and its shape. int8 has row scales beside its bytes, for which
// there is no place here: ask for float32 and quantise that with cast().
py::tuple reduce_tensor(const py::object& tensor, std::size_t head_axis, const std::string& reduction,
                        const std::optional<std::vector<std::int64_t>>& heads, const std::string& dtype,
                        bool e4m3_saturates, bool e5m2_saturates) {
    const TensorAccess access(TensorAccessMethod::automatic);
    if (!access.is_tensor(tensor.ptr())) throw std::invalid_argument("not a torch tensor");
    const std::optional<HeadReduction> known = head_reduction_from_name(reduction);
    if (!known) {
        throw std::invalid_argument("there is no reduction '" + reduction +
                                    "'; use mean, sum, max, l2_norm, entropy, select");
    }
    const DType target = parse_dtype(dtype);
    if (target == DType::i8) {
        throw std::invalid_argument(
            "int8 has row scales of its own; reduce to float32 and cast that to int8");
    }
    py::object owner;
    const TensorView view = access.host_view(tensor.ptr(), owner);
    const HeadReducer reducer(view, head_axis, *known, heads, target,
                              CastRules{e4m3_saturates, e5m2_saturates});
    const auto count = static_cast<std::size_t>(reducer.elements());
    std::string bytes(count * item_size(target), '\0');
    {
        const py::gil_scoped_release released;
        reducer.read(0, count, reinterpret_cast<std::byte*>(bytes.data()));
    }
    return py::make_tuple(py::bytes(bytes), py::tuple(py::cast(reducer.shape())));
}

}  // namespace

void register_reductions(py::module_& module) {
    using namespace py::literals;
    module.def("head_reduce", &reduce_tensor, "tensor"_a, "head_axis"_a, "reduction"_a,
               "heads"_a = py::none(), "dtype"_a = "float32", "e4m3_saturates"_a = true,
               "e5m2_saturates"_a = false,
               "(bytes, shape) of a CPU tensor reduced over its heads, as a capture would store it.");
}

}  // namespace nsf
