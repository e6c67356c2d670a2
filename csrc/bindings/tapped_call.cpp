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
    PyObject* to_hooks;
};

struct Names {
    PyObject* call_impl = PyUnicode_InternFromString("_call_impl");
    PyObject* forward_hooks = PyUnicode_InternFromString("_forward_hooks");
    PyObject* forward_pre_hooks = PyUnicode_InternFromString("_forward_pre_hooks");
    PyObject* place = PyUnicode_InternFromString("_compiled_call_impl");

    static const Names& get() {
        static const Names names;  // for ever
        return names;
    }
};

py::object attributes_of(PyObject* module) {
    PyObject* const found = PyObject_GenericGetDict(module, nullptr);
    if (found == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(found);
}

bool has_hooks(PyObject* module) {
    const py::object attributes = attributes_of(module);
    for (PyObject* const name : {Names::get().forward_hooks, Names::get().forward_pre_hooks}) {
        PyObject* const hooks = PyDict_GetItemWithError(attributes.ptr(), name);
        if (hooks == nullptr || !PyDict_Check(hooks) || PyDict_Size(hooks) != 0) return true;
    }
    return false;
}

// The module that torch is calling: `self` of the Python function that called us. A replica that torch.nn.DataParallel
// makes has the attributes of the original, this call among them.
py::object called_module(PyObject* expected) {
    PyFrameObject* const frame = PyEval_GetFrame();  // borrowed
    if (frame == nullptr) return py::reinterpret_borrow<py::object>(expected);
    const py::object locals = py::handle(reinterpret_cast<PyObject*>(frame)).attr("f_locals");
    PyObject* const self = PyMapping_GetItemString(locals.ptr(), "self");
    if (self == nullptr) {
        PyErr_Clear();  // somebody else's function, which no replica is called by
        return py::reinterpret_borrow<py::object>(expected);
    }
    const py::object found = py::reinterpret_steal<py::object>(self);
    return py::isinstance(found, py::type::of(py::handle(expected)))
               ? found
               : py::reinterpret_borrow<py::object>(expected);
}

py::object call_module(PyObject* module, PyObject* args, PyObject* kwargs) {
    PyObject* const found = PyObject_GetAttr(module, Names::get().call_impl);
    if (found == nullptr) throw py::error_already_set();
    const auto call = py::reinterpret_steal<py::object>(found);
    PyObject* const result = PyObject_Call(call.ptr(), args, kwargs);
    if (result == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
}

void call_taps(PyObject* taps, PyObject* module, PyObject* args, PyObject* last, CallUnderWay& under_way) {
    const std::array<PyObject*, 3> arguments{module, args, last};
    under_way.taps_now(true);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(taps); ++i) {
        PyObject* const nothing =
            PyObject_Vectorcall(PyTuple_GET_ITEM(taps, i), arguments.data(), arguments.size(), nullptr);
        if (nothing == nullptr) throw py::error_already_set();
        Py_DECREF(nothing);
    }
    under_way.taps_now(false);
}

py::object call(const TappedCall& self, PyObject* args, PyObject* kwargs) {
    Session& session = **self.session;
    if (!session.clock.in_pass()) {
        const py::object called = called_module(self.module);
        if (called.ptr() != self.module) return call_module(called.ptr(), args, kwargs);
    }
    if (session.closed.load(std::memory_order_relaxed)) return call_module(self.module, args, kwargs);
    if (has_hooks(self.module)) {
        py::handle(self.to_hooks)();
        return call_module(self.module, args, kwargs);
    }
    CallUnderWay under_way(self.module);
    if (PyTuple_GET_SIZE(self.before) != 0) {
        const py::object named = kwargs == nullptr ? py::dict() : py::reinterpret_borrow<py::object>(kwargs);
        call_taps(self.before, self.module, args, named.ptr(), under_way);
    }
    py::object result = call_module(self.module, args, kwargs);
    if (!under_way.hooks_took_output()) call_taps(self.after, self.module, args, result.ptr(), under_way);
    return result;
}

TappedCall* of(PyObject* self) { return reinterpret_cast<TappedCall*>(self); }

PyObject* call_or_raise(PyObject* self, PyObject* args, PyObject* kwargs) {
    const auto alive =
        py::reinterpret_borrow<py::object>(self);  // the capture may end in the module's own call
    try {
        return call(*of(self), args, kwargs).release().ptr();
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

// A model that is copied or serialised by other means than Module's own, which leave this out: there is no such call.
PyObject* reduce(PyObject*, PyObject*) {
    return Py_BuildValue("(O())", reinterpret_cast<PyObject*>(Py_TYPE(Py_None)));
}

int traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(of(self)->module);
    Py_VISIT(of(self)->before);
    Py_VISIT(of(self)->after);
    Py_VISIT(of(self)->to_hooks);
    return 0;
}

int clear(PyObject* self) {
    Py_CLEAR(of(self)->module);
    Py_CLEAR(of(self)->before);
    Py_CLEAR(of(self)->after);
    Py_CLEAR(of(self)->to_hooks);
    return 0;
}

void destroy(PyObject* self) {
    PyObject_GC_UnTrack(self);
    (*of(self)->session)->calls.remove(self);
    clear(self);
    delete of(self)->session;
    PyTypeObject* const type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

PyTypeObject* tapped_call_type() {
    static PyMethodDef methods[] = {{"__reduce__", reduce, METH_NOARGS, nullptr}, {}};
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

void TappedCalls::make_hooks_of_displaced() const {
    std::vector<py::object> displaced;  // first, since Python code may change what is in calls_
    for (PyObject* const call : calls_) {
        const py::object attributes = attributes_of(of(call)->module);
        if (PyDict_GetItemWithError(attributes.ptr(), Names::get().place) == call) continue;
        displaced.push_back(py::reinterpret_borrow<py::object>(of(call)->to_hooks));
    }
    for (const py::object& to_hooks : displaced) to_hooks();
}

py::object make_tapped_call(const std::shared_ptr<Session>& session, const py::object& module,
                            const py::tuple& before, const py::tuple& after, const py::object& to_hooks) {
    for (const py::tuple& taps : {before, after}) {
        for (const py::handle tap : taps) tap_of(tap.ptr()).in_module_call = true;
    }
    auto owned = std::make_unique<std::shared_ptr<Session>>(session);
    auto* const made = PyObject_GC_New(TappedCall, tapped_call_type());
    if (made == nullptr) throw py::error_already_set();
    made->session = owned.release();
    made->module = py::object(module).release().ptr();
    made->before = py::object(before).release().ptr();
    made->after = py::object(after).release().ptr();
    made->to_hooks = py::object(to_hooks).release().ptr();
    PyObject_GC_Track(reinterpret_cast<PyObject*>(made));
    auto call = py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(made));
    session->calls.add(call.ptr());
    return call;
}

}  // namespace nsf
