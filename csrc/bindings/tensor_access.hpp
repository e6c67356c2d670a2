// Looks into Python values for tensors, and into tensors for their memory. Everything here needs the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "bindings/dlpack.hpp"
#include "core/tensor_view.hpp"

namespace nsf {

namespace py = pybind11;

// dlpack: the C function table of torch >= 2.10 (0.1 µs a tensor). attributes: data_ptr(), shape, stride()
// and dtype.
enum class TensorAccessMethod : std::uint8_t { automatic, dlpack, attributes };

class TensorAccess {
  public:
    // Imports torch. Throws std::invalid_argument where `dlpack` is asked for and torch has no table of
    // version 1.
    explicit TensorAccess(TensorAccessMethod method);

    bool uses_dlpack() const { return api_ != nullptr; }
    bool is_tensor(PyObject* value) const {
        return PyObject_TypeCheck(value, reinterpret_cast<PyTypeObject*>(tensor_type_.ptr())) != 0;
    }

    // The first tensor in a tensor, tuple, list, dict or ModelOutput, depth first (borrowed); null where
    // there is none.
    PyObject* first_tensor(PyObject* value) const;

    // The memory of a tensor on the CPU or a CUDA device, there with the stream on which torch works now. A
    // lazily conjugated or negated view is resolved first, since its raw bytes are not its values: the new tensor is
    // kept in `owner`, which must outlive the view. Throws
    // std::invalid_argument with the reason for a tensor that has no such memory (another device, sparse,
    // meta, a wrapper, an unknown dtype).
    TensorView view(PyObject* tensor, py::object& owner) const;
    // view() in two parts: first what torch says of the tensor, without a copy of its shape and strides, which are the
    // tensor's own and may change once the GIL is let go. False where only view() can tell: no table, or values that have to be computed first.
    bool read(PyObject* tensor, dlpack::Tensor& raw) const;
    TensorView view_of(const dlpack::Tensor& raw, PyObject* tensor, py::object& owner) const;
    // The same, for code that reads the memory itself: throws for a tensor that is not on the CPU.
    TensorView host_view(PyObject* tensor, py::object& owner) const;

  private:
    TensorView view_by_dlpack(const dlpack::Tensor& raw, PyObject* tensor) const;
    static TensorView view_by_attributes(PyObject* tensor);

    py::object tensor_type_;
    py::object is_neg_;  // torch.Tensor's methods
    py::object is_conj_;
    const dlpack::ExchangeApi* api_ = nullptr;
};

}  // namespace nsf
