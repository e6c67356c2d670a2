#include "bindings/tapped_call.hpp"

#include <array>
#include <atomic>
#include <exception>
#include <utility>

#include "bindings/session.hpp"

namespace nsf {
namespace {

// A plain object of CPython's, since the collector has to follow it: the module holds it, and it the module.
struct TappedCall {
    PyObject_HEAD std::shared_ptr<Session>* session;
    PyObject* module;
    PyObject* before;
    PyObject* after;
    Py_ssize_t under_way;  // calls of it, each of which its caller holds a reference for
    bool retired;  // taken out of its place: whoever calls it now has kept it, or a copy of the attributes
};

// The references that there are to one that nobody calls: the module's __dict__ and whoever will take it out again.
constexpr Py_ssize_t own_references = 2;

struct Names {
    PyObject* call_impl = PyUnicode_InternFromString("_call_impl");
    PyObject* forward = PyUnicode_InternFromString("forward");
    PyObject* forward_hooks = PyUnicode_InternFromString("_forward_hooks");
    PyObject* forward_pre_hooks = PyUnicode_InternFromString("_forward_pre_hooks");
    PyObject* backward_hooks = PyUnicode_InternFromString("_backward_hooks");
    PyObject* backward_pre_hooks = PyUnicode_InternFromString("_backward_pre_hooks");
    PyObject* place = PyUnicode_InternFromString("_compiled_call_impl");
};

const Names& names() {
    static const Names names;  // for ever
    return names;
}

// What of torch is not the module's own.
struct Torch {
    std::array<py::object, 4> global_hooks;
    py::object tracing_state;

    static const Torch& get() {
        static const auto* const torch = [] {
            const py::module_ module = py::module_::import("torch.nn.modules.module");
            return new Torch{
                {module.attr("_global_backward_pre_hooks"), module.attr("_global_backward_hooks"),
                 module.attr("_global_forward_hooks"), module.attr("_global_forward_pre_hooks")},
                py::module_::import("torch._C").attr("_get_tracing_state")};
        }();  // for ever: destroyed after the interpreter it would take Python objects with it
        return *torch;
    }
};

py::object owned(PyObject* made) {
    if (made == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(made);
}

// Whether these are the values of the dict under `name`, in their order.
bool holds_only(PyObject* attributes, PyObject* name, PyObject* taps) {
    PyObject* const hooks = PyDict_GetItemWithError(attributes, name);
    if (hooks == nullptr || PyDict_Check(hooks) == 0 || PyDict_Size(hooks) != PyTuple_GET_SIZE(taps))
        return false;
    PyObject* key = nullptr;
    PyObject* hook = nullptr;
    Py_ssize_t position = 0;
    for (Py_ssize_t i = 0; PyDict_Next(hooks, &position, &key, &hook) != 0; ++i) {
        if (hook != PyTuple_GET_ITEM(taps, i)) return false;
    }
    return true;
}

bool is_empty(PyObject* attributes, PyObject* name) {
    PyObject* const hooks = PyDict_GetItemWithError(attributes, name);
    return hooks != nullptr && PyDict_Check(hooks) != 0 && PyDict_Size(hooks) == 0;
}

// Whether the taps are all that Module._call_impl would have to look after.
bool has_taps_only(const TappedCall& self) {
    const Torch& torch = Torch::get();
    for (const py::object& hooks : torch.global_hooks) {
        if (PyDict_Size(hooks.ptr()) != 0) return false;
    }
    const py::object attributes = owned(PyObject_GenericGetDict(self.module, nullptr));
    if (!holds_only(attributes.ptr(), names().forward_hooks, self.after) ||
        !holds_only(attributes.ptr(), names().forward_pre_hooks, self.before) ||
        !is_empty(attributes.ptr(), names().backward_hooks) ||
        !is_empty(attributes.ptr(), names().backward_pre_hooks)) {
        return false;
    }
    return owned(PyObject_CallNoArgs(torch.tracing_state.ptr())).is_none();
}

// The module that torch is calling: `self` of the function that has called us.
py::object called_module(const TappedCall& self) {
    PyFrameObject* const frame = PyEval_GetFrame();  // borrowed
    if (frame != nullptr) {
        const py::handle caller(reinterpret_cast<PyObject*>(frame));
        const std::string function = py::str(caller.attr("f_code").attr("co_name"));
        if (function == "_wrapped_call_impl") return caller.attr("f_locals")["self"];
    }
    return py::reinterpret_borrow<py::object>(self.module);
}

void call_taps(PyObject* taps, PyObject* module, PyObject* args, PyObject* last) {
    const std::array<PyObject*, 3> arguments{module, args, last};
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(taps); ++i) {
        owned(PyObject_Vectorcall(PyTuple_GET_ITEM(taps, i), arguments.data(), arguments.size(), nullptr));
    }
}

py::object call_method(PyObject* module, PyObject* name, PyObject* args, PyObject* kwargs) {
    const py::object method = owned(PyObject_GetAttr(module, name));
    return owned(PyObject_Call(method.ptr(), args, kwargs));
}

py::object call(TappedCall& self, PyObject* args, PyObject* kwargs) {
    const bool ended = self.retired || (*self.session)->closed.load(std::memory_order_relaxed);
    if (ended || Py_REFCNT(reinterpret_cast<PyObject*>(&self)) > own_references + self.under_way) {
        const py::object called = called_module(self);
        if (called.ptr() != self.module) {
            const py::object attributes = owned(PyObject_GenericGetDict(called.ptr(), nullptr));
            if (PyDict_GetItemWithError(attributes.ptr(), names().place) ==
                reinterpret_cast<PyObject*>(&self)) {
                PyDict_DelItem(attributes.ptr(), names().place);  // the copy needs it no more
            }
        }
        if (ended || called.ptr() != self.module)
            return call_method(called.ptr(), names().call_impl, args, kwargs);
    }
    if (!has_taps_only(self)) return call_method(self.module, names().call_impl, args, kwargs);
    if (PyTuple_GET_SIZE(self.before) != 0) {
        const py::object named = kwargs == nullptr ? py::dict() : py::reinterpret_borrow<py::object>(kwargs);
        call_taps(self.before, self.module, args, named.ptr());
    }
    py::object result = call_method(self.module, names().forward, args, kwargs);
    call_taps(self.after, self.module, args, result.ptr());
    return result;
}

TappedCall* of(PyObject* self) { return reinterpret_cast<TappedCall*>(self); }

PyObject* call_or_raise(PyObject* object, PyObject* args, PyObject* kwargs) {
    TappedCall& self = *of(object);
    ++self.under_way;
    PyObject* result = nullptr;
    try {
        result = call(self, args, kwargs).release().ptr();
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    --self.under_way;
    return result;
}

// A model that is copied or serialised by other means than Module's own, which leave this out: there is no such call.
PyObject* reduce(PyObject*, PyObject*) {
    return Py_BuildValue("(O())", reinterpret_cast<PyObject*>(Py_TYPE(Py_None)));
}

PyObject* retire(PyObject* self, PyObject*) {
    of(self)->retired = true;
    Py_RETURN_NONE;
}

int traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(of(self)->module);
    Py_VISIT(of(self)->before);
    Py_VISIT(of(self)->after);
    return 0;
}

int clear(PyObject* self) {
    Py_CLEAR(of(self)->module);
    Py_CLEAR(of(self)->before);
    Py_CLEAR(of(self)->after);
    return 0;
}

void destroy(PyObject* self) {
    PyObject_GC_UnTrack(self);
    clear(self);
    delete of(self)->session;
    PyTypeObject* const type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

PyTypeObject* tapped_call_type() {
    static PyMethodDef methods[] = {{"retire", retire, METH_NOARGS, "It captures nothing from now on."},
                                    {"__reduce__", reduce, METH_NOARGS, nullptr},
                                    {}};
    static PyType_Slot slots[] = {{Py_tp_call, reinterpret_cast<void*>(call_or_raise)},
                                  {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                                  {Py_tp_clear, reinterpret_cast<void*>(clear)},
                                  {Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
                                  {Py_tp_methods, methods},
                                  {0, nullptr}};
    static PyType_Spec spec = {"neuroscope_fast._core.TappedCall", sizeof(TappedCall), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                               slots};
    static auto* const type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));  // for ever
    if (type == nullptr) throw py::error_already_set();
    return type;
}

}  // namespace

py::object make_tapped_call(const std::shared_ptr<Session>& session, const py::object& module,
                            const py::tuple& before, const py::tuple& after) {
    auto kept = std::make_unique<std::shared_ptr<Session>>(session);
    auto* const made = PyObject_GC_New(TappedCall, tapped_call_type());
    if (made == nullptr) throw py::error_already_set();
    made->session = kept.release();
    made->module = py::object(module).release().ptr();
    made->before = py::object(before).release().ptr();
    made->after = py::object(after).release().ptr();
    made->under_way = 0;
    made->retired = false;
    PyObject_GC_Track(reinterpret_cast<PyObject*>(made));
    return owned(reinterpret_cast<PyObject*>(made));
}

}  // namespace nsf
