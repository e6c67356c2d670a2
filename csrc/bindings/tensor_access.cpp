#include "bindings/tensor_access.hpp"

#include <algorithm>
#include <optional>
#include <stdexcept>

namespace nsf {
namespace {

constexpr int deepest_nesting = 16;

PyObject* find_tensor(const TensorAccess& access, PyObject* value, int depth) {
    if (access.is_tensor(value)) return value;
    if (depth == deepest_nesting) return nullptr;
    if (PyTuple_Check(value) || PyList_Check(value)) {
        const Py_ssize_t size = PySequence_Fast_GET_SIZE(value);
        for (Py_ssize_t i = 0; i < size; ++i) {
            if (PyObject* found = find_tensor(access, PySequence_Fast_GET_ITEM(value, i), depth + 1))
                return found;
        }
    } else if (PyDict_Check(value)) {  // ModelOutput is an OrderedDict
        PyObject* key = nullptr;
        PyObject* item = nullptr;
        Py_ssize_t position = 0;
        while (PyDict_Next(value, &position, &key, &item) != 0) {
            if (PyObject* found = find_tensor(access, item, depth + 1)) return found;
        }
    }
    return nullptr;
}

std::optional<DType> dtype_of(const dlpack::DataType& type) {
    if (type.lanes != 1) return std::nullopt;
    const auto by_bits = [&](std::optional<DType> b8, std::optional<DType> b16, std::optional<DType> b32,
                             std::optional<DType> b64) -> std::optional<DType> {
        switch (type.bits) {
            case 8:
                return b8;
            case 16:
                return b16;
            case 32:
                return b32;
            case 64:
                return b64;
            default:
                return std::nullopt;
        }
    };
    constexpr std::nullopt_t no = std::nullopt;
    switch (type.code) {
        case dlpack::code_int:
            return by_bits(DType::i8, DType::i16, DType::i32, DType::i64);
        case dlpack::code_uint:
            return by_bits(DType::u8, DType::u16, DType::u32, DType::u64);
        case dlpack::code_float:
            return by_bits(no, DType::f16, DType::f32, DType::f64);
        case dlpack::code_bfloat:
            return by_bits(no, DType::bf16, no, no);
        case dlpack::code_complex:
            return by_bits(no, no, no, DType::c64);
        case dlpack::code_bool:
            return by_bits(DType::boolean, no, no, no);
        case dlpack::code_float8_e4m3fn:
            return by_bits(DType::f8_e4m3fn, no, no, no);
        case dlpack::code_float8_e5m2:
            return by_bits(DType::f8_e5m2, no, no, no);
        default:
            return no;
    }
}

std::string dtype_text(PyObject* tensor) { return py::str(py::handle(tensor).attr("dtype")); }

[[noreturn]] void refuse_dtype(PyObject* tensor) {
    throw std::invalid_argument("its dtype " + dtype_text(tensor) + " cannot be stored");
}

[[noreturn]] void refuse_device(const std::string& device) {
    throw std::invalid_argument(
        "it is on the device " + device +
        "; captures are made from the CPU and from CUDA devices: move the model to one");
}

// Turns the Python error that is set into the reason why a tensor cannot be read.
[[noreturn]] void refuse_with_python_error() {
    py::error_already_set error;
    std::string reason = py::str(error.value());
    reason.resize(std::min(reason.find('\n'), reason.size()));  // what follows is torch's own stack
    throw std::invalid_argument("torch gives no access to its memory (" + reason + ")");
}

bool ask(PyObject* tensor, PyObject* method) {
    PyObject* answer = PyObject_CallOneArg(method, tensor);
    if (answer == nullptr) refuse_with_python_error();
    const bool yes = answer == Py_True;
    Py_DECREF(answer);
    return yes;
}

void refuse_without_memory(const TensorView& view) {
    if (view.data == nullptr && view.elements() > 0) {
        throw std::invalid_argument("it has no memory of its own (a wrapper or fake tensor)");
    }
}

}  // namespace

TensorAccess::TensorAccess(TensorAccessMethod method)
    : tensor_type_(py::module_::import("torch").attr("Tensor")),
      is_neg_(tensor_type_.attr("is_neg")),
      is_conj_(tensor_type_.attr("is_conj")) {
    if (method == TensorAccessMethod::attributes) return;
    PyObject* capsule = PyObject_GetAttrString(tensor_type_.ptr(), "__dlpack_c_exchange_api__");
    if (capsule == nullptr) {
        PyErr_Clear();
    } else {
        const py::object owner =
            py::reinterpret_steal<py::object>(capsule);  // torch keeps the table for ever
        const auto* api =
            static_cast<dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
        if (api == nullptr) PyErr_Clear();
        while (api != nullptr && api->version.major != 1) api = api->previous;
        api_ = api;
    }
    if (api_ == nullptr && method == TensorAccessMethod::dlpack) {
        throw std::invalid_argument(
            "this torch has no DLPack exchange table of version 1 (torch >= 2.10 has)");
    }
}

PyObject* TensorAccess::first_tensor(PyObject* value) const { return find_tensor(*this, value, 0); }

bool TensorAccess::read(PyObject* tensor, dlpack::Tensor& raw) const {
    // First, since torch lets go of the GIL for it, and what `raw` points to is the tensor's own.
    if (!uses_dlpack() || ask(tensor, is_neg_.ptr())) return false;
    if (api_->tensor_from_py_object_no_sync(tensor, &raw) != 0) refuse_with_python_error();
    return true;
}

TensorView TensorAccess::view_of(const dlpack::Tensor& raw, PyObject* tensor, py::object& owner) const {
    TensorView view = view_by_dlpack(raw, tensor);
    if (view.dtype == DType::c64 && ask(tensor, is_conj_.ptr())) {
        owner = py::handle(tensor).attr("resolve_conj")();
        dlpack::Tensor resolved{};
        if (!read(owner.ptr(), resolved)) throw std::invalid_argument("torch does not resolve its conjugate");
        view = view_by_dlpack(resolved, owner.ptr());
    }
    refuse_without_memory(view);
    return view;
}

TensorView TensorAccess::view(PyObject* tensor, py::object& owner) const {
    dlpack::Tensor raw{};
    if (read(tensor, raw)) return view_of(raw, tensor, owner);
    if (ask(tensor, is_neg_.ptr())) {
        owner = py::handle(tensor).attr("resolve_neg")();
        tensor = owner.ptr();
        if (read(tensor, raw)) return view_of(raw, tensor, owner);
    }
    TensorView view = view_by_attributes(tensor);
    if (view.dtype == DType::c64 && ask(tensor, is_conj_.ptr())) {
        owner = py::handle(tensor).attr("resolve_conj")();
        view = view_by_attributes(owner.ptr());
    }
    refuse_without_memory(view);
    return view;
}

TensorView TensorAccess::host_view(PyObject* tensor, py::object& owner) const {
    TensorView found = view(tensor, owner);
    if (found.device != TensorView::host) {
        const std::string device = py::str(py::handle(tensor).attr("device"));
        throw std::invalid_argument("it is on the device " + device + "; move it to the CPU");
    }
    return found;
}

TensorView TensorAccess::view_by_dlpack(const dlpack::Tensor& raw, PyObject* tensor) const {
    const bool on_cuda = raw.device.type == dlpack::cuda;
    if (!on_cuda && raw.device.type != dlpack::cpu && raw.device.type != dlpack::cuda_host) {
        refuse_device(py::str(py::handle(tensor).attr("device")));
    }
    const std::optional<DType> dtype = dtype_of(raw.dtype);
    if (!dtype) refuse_dtype(tensor);
    TensorView view;
    view.data = static_cast<const std::byte*>(raw.data) + raw.byte_offset;
    if (raw.data == nullptr) view.data = nullptr;
    if (on_cuda) {
        view.device = raw.device.id;
        if (api_->current_work_stream(raw.device.type, raw.device.id, &view.stream) != 0) {
            refuse_with_python_error();
        }
    }
    view.dtype = *dtype;
    view.shape.assign(raw.shape, raw.shape + raw.ndim);
    if (raw.strides != nullptr) {
        view.strides.assign(raw.strides, raw.strides + raw.ndim);
    } else {
        view.strides.assign(view.shape.size(), 1);
        for (std::size_t i = view.shape.size(); i-- > 1;)
            view.strides[i - 1] = view.strides[i] * view.shape[i];
    }
    return view;
}

TensorView TensorAccess::view_by_attributes(PyObject* tensor) {
    try {
        const py::handle handle(tensor);
        const py::object device = handle.attr("device");
        const std::string type = py::str(device.attr("type"));
        if (type != "cpu" && type != "cuda") refuse_device(py::str(device));
        const std::string layout = py::str(handle.attr("layout"));
        if (layout != "torch.strided")
            throw std::invalid_argument("its layout " + layout + " has no strides");
        const std::string text = dtype_text(tensor);
        const std::optional<DType> dtype = dtype_from_name(text.substr(text.find('.') + 1));
        if (!dtype) refuse_dtype(tensor);
        TensorView view;
        view.dtype = *dtype;
        if (type == "cuda") {
            const py::object stream =
                py::module_::import("torch").attr("cuda").attr("current_stream")(device);
            view.device = device.attr("index").cast<int>();
            view.stream = reinterpret_cast<void*>(stream.attr("cuda_stream").cast<std::uintptr_t>());
        }
        for (const py::handle size : handle.attr("shape")) view.shape.push_back(size.cast<std::int64_t>());
        for (const py::handle stride : handle.attr("stride")())
            view.strides.push_back(stride.cast<std::int64_t>());
        view.data = reinterpret_cast<const std::byte*>(handle.attr("data_ptr")().cast<std::uintptr_t>());
        return view;
    } catch (py::error_already_set& error) {
        error.restore();
        refuse_with_python_error();
    }
}

}  // namespace nsf
