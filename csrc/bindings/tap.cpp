// The hot path: what happens when a hooked module runs. A plain C function with the vectorcall convention,
// since pybind11's dispatcher alone would cost as much as the whole of it.
#include <exception>
#include <new>
#include <stdexcept>
#include <utility>

#include "bindings/session.hpp"
#include "core/error.hpp"

namespace nsf {
namespace {

// What a tap is bound to: `tap` is a method of it.
struct TapObject {
    PyObject_HEAD Tap* tap;
};

class ReleasedGil {
  public:
    ReleasedGil() : state_(PyEval_SaveThread()) {}
    ~ReleasedGil() { PyEval_RestoreThread(state_); }
    ReleasedGil(const ReleasedGil&) = delete;
    ReleasedGil& operator=(const ReleasedGil&) = delete;

  private:
    PyThreadState* state_;
};

std::string type_name(PyObject* value) { return Py_TYPE(value)->tp_name; }

// The activation among a module's inputs: the first positional tensor, else `hidden_states`, else the first
// by keyword.
PyObject* input_tensor(const TensorAccess& access, PyObject* args, PyObject* kwargs) {
    if (PyObject* found = access.first_tensor(args)) return found;
    if (kwargs == nullptr) return nullptr;
    PyObject* named = PyDict_GetItemString(kwargs, "hidden_states");
    if (named != nullptr && access.is_tensor(named)) return named;
    return access.first_tensor(kwargs);
}

// A named field of a ModelOutput, dict or object. With return_dict=False the fields come as a tuple without
// names: then the first tensor that is not a scalar (the loss is one) is meant.
py::object field_tensor(const TensorAccess& access, PyObject* output, const std::string& field) {
    if (PyTuple_Check(output)) {
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(output); ++i) {
            PyObject* item = PyTuple_GET_ITEM(output, i);
            if (access.is_tensor(item) && py::handle(item).attr("dim")().cast<int>() > 0) {
                return py::reinterpret_borrow<py::object>(item);
            }
        }
        return py::none();
    }
    if (PyDict_Check(output)) {
        PyObject* item = PyDict_GetItemString(output, field.c_str());
        return item == nullptr ? py::none() : py::reinterpret_borrow<py::object>(item);
    }
    return py::getattr(output, field.c_str(), py::none());
}

py::object find_activation(const Tap& tap, PyObject* const* arguments, Py_ssize_t count) {
    const TensorAccess& access = tap.session->access;
    if (tap.is_input) {
        PyObject* kwargs = count > 2 && PyDict_Check(arguments[2]) ? arguments[2] : nullptr;
        if (!tap.field.empty()) {
            PyObject* found = kwargs == nullptr ? nullptr : PyDict_GetItemString(kwargs, tap.field.c_str());
            if (found == nullptr && tap.argument >= 0 && tap.argument < PyTuple_GET_SIZE(arguments[1]))
                found = PyTuple_GET_ITEM(arguments[1], tap.argument);
            if (found != nullptr && access.is_tensor(found)) return py::reinterpret_borrow<py::object>(found);
            throw EngineError(tap.place->description + ": the module was called without a tensor for '" +
                              tap.field + "'");
        }
        PyObject* found = input_tensor(access, arguments[1], kwargs);
        if (found != nullptr) return py::reinterpret_borrow<py::object>(found);
        throw EngineError(tap.place->description +
                          ": the module was called without a tensor among its inputs");
    }
    PyObject* output = arguments[count - 1];
    if (!tap.field.empty()) {
        py::object found = field_tensor(access, output, tap.field);
        if (access.is_tensor(found.ptr())) return found;
        throw EngineError(tap.place->description + ": the output (" + type_name(output) +
                          ") has no tensor called '" + tap.field + "'");
    }
    PyObject* found = access.first_tensor(output);
    if (found != nullptr) return py::reinterpret_borrow<py::object>(found);
    throw EngineError(tap.place->description + ": there is no tensor in the module's output, which is a " +
                      type_name(output));
}

// The short way of small tensors, whose kind the tap knows: false where it cannot be gone. With the GIL held.
bool store_known(const Tap& tap, const Step& step, const dlpack::Tensor& raw, std::uint64_t started) {
    const RecordForm* form = tap.known.form(raw);
    if (form == nullptr) return false;
    const TapPlace& place = *tap.place;
    const StepFacts& facts = place.facts_of(step);
    std::optional<const std::string*> note = nullptr;
    if (!needs_no_note(facts, place.sequence)) {
        note = step.notes.find({facts, place.sequence, raw.shape, static_cast<std::size_t>(raw.ndim)});
        if (!note) return false;
    }
    Engine& engine = tap.session->engine;
    const Origin origin{form->stream, step.prompt, step.number, step.calls[place.index] - 1};
    const auto* data = static_cast<const std::byte*>(raw.data) + raw.byte_offset;
    if (!engine.try_submit(*form, origin, *note, data)) return false;
    engine.count_tap(TickClock::since(started), form->elements * item_size(form->computed));
    return true;
}

// What store_known() will need for the next tensors like this one. Made without the GIL, which whoever holds the
// engine may be waiting for.
struct Lesson {
    Lesson(KnownTensor& known, const dlpack::Tensor& raw, const TensorView& view)
        : form_is_wanted(known.asks_for_form(raw, view)),
          note_is_wanted(form_is_wanted || known.form(raw) != nullptr),
          kind(raw) {}

    void learn(const TapPlace& place, Step& step, const TensorView& view, const std::string& note,
               Engine& engine) {
        const TapRule& rule = place.rules[0];
        if (form_is_wanted) {
            form = engine.form_of(rule.stream, view.dtype, rule.stored_as(view.dtype), view.shape);
        }
        const StepFacts& facts = place.facts_of(step);
        if (!note_is_wanted || needs_no_note(facts, place.sequence)) return;
        const NoteKey key(facts, place.sequence, view.shape.data(), view.shape.size());
        if (!step.notes.find(key)) step.notes.add(key, engine.intern(note));
    }

    const bool form_is_wanted;
    const bool note_is_wanted;
    const TensorKind kind;
    std::optional<RecordForm> form;
};

// The module computes nothing now: the graph that is being captured gets what will.
void record(const Tap& tap, GraphRecording& graph, PyObject* const* arguments, Py_ssize_t count) {
    const py::object activation = find_activation(tap, arguments, count);
    py::object owner;
    const TensorView view = tap.session->access.view(activation.ptr(), owner);
    const ReleasedGil released;
    graph.add(tap.place, view);
}

void run_tap(Tap& tap, PyObject* const* arguments, Py_ssize_t count) {
    const std::uint64_t start = TickClock::now();
    Session& session = *tap.session;
    if (arguments[0] != tap.module) return;
    if (!session.clock.in_pass() && session.in_backward()) return;
    const TapPlace& place = *tap.place;
    std::uint64_t bytes = 0;
    const char* type = nullptr;
    try {
        if (const std::shared_ptr<GraphRecording> graph = session.graphs.here()) {
            record(tap, *graph, arguments, count);
            return;
        }
        session.fired[place.index].fetch_add(1, std::memory_order_relaxed);
        Step& step = session.clock.fire(place.index);
        const StepFacts& facts = place.facts_of(step);
        bool wanted = false;
        bool wanted_later = false;
        for (const TapRule& rule : place.rules) {
            wanted = wanted || rule.wants(facts, step.number);
            wanted_later = wanted_later || rule.wants_other_steps(facts);
        }
        if (!wanted && !wanted_later) return;
        const py::object activation = find_activation(tap, arguments, count);
        type = Py_TYPE(activation.ptr())->tp_name;
        dlpack::Tensor raw{};
        const bool is_read = session.access.read(activation.ptr(), raw);
        if (is_read && store_known(tap, step, raw, start)) return;
        py::object owner;
        const TensorView view = is_read ? session.access.view_of(raw, activation.ptr(), owner)
                                        : session.access.view(activation.ptr(), owner);
        if (!wanted) {
            // A graph that is captured in a step that is passed over is replayed in those that are not.
            if (view.device == TensorView::host) return;
            const ReleasedGil released;
            session.engine.refuse_graph(view);
            return;
        }
        bytes = view.elements() * item_size(view.dtype);
        std::optional<Lesson> lesson;
        if (is_read && place.takes_everything()) lesson.emplace(tap.known, raw, view);
        {
            const ReleasedGil released;
            apply_rules(
                place, step, [&](const TapRule&) { return view; },
                [&](const TapRule& rule, const Origin& origin, const Kept& kept) {
                    session.engine.submit(origin, kept, rule.stored_as(view.dtype));
                    if (lesson) lesson->learn(place, step, view, kept.note, session.engine);
                });
            // Nobody will tell of the end of a step that no pass has opened.
            if (!session.clock.in_pass()) session.engine.end_step();
        }
        if (lesson && lesson->form) tap.known.keep(lesson->kind, *lesson->form);
    } catch (const std::invalid_argument& error) {
        const std::string what =
            type == nullptr ? "the activation" : std::string("the tensor (") + type + ")";
        throw EngineError(place.description + ": " + what + " cannot be captured: " + error.what());
    }
    session.engine.count_tap(TickClock::since(start), bytes);
}

PyObject* detach_or_raise(Session& session, const EngineError& error) {
    try {
        if (session.detach(error.what())) Py_RETURN_NONE;
        PyErr_SetString(capture_error(), error.what());
    } catch (py::error_already_set& warning) {
        warning.restore();
    }
    return nullptr;
}

PyObject* call_tap(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
    Tap* const tap = reinterpret_cast<TapObject*>(self)->tap;
    if (count < 2 || count > 4) {
        PyErr_SetString(PyExc_TypeError, "a tap is called by torch with (module, inputs, output)");
        return nullptr;
    }
    const std::atomic<bool>& closed = tap->session->closed;
    try {
        if (!closed.load(std::memory_order_relaxed)) run_tap(*tap, arguments, count);
        Py_RETURN_NONE;
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const EngineError& error) {
        // A forward in another thread may meet the end of the block: that is no fault of the model's.
        if (closed.load(std::memory_order_relaxed)) Py_RETURN_NONE;
        return detach_or_raise(*tap->session, error);
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

PyMethodDef tap_method = {
    "tap", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_tap)), METH_FASTCALL,
    "A native tap of neuroscope-fast: stores the module's activation and returns None."};

void delete_tap(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    delete reinterpret_cast<TapObject*>(self)->tap;
    type->tp_free(self);
    Py_DECREF(type);
}

// A model that is serialised in the block: its copy has taps that do nothing.
PyObject* reduce_tap(PyObject*, PyObject*) {
    try {
        const py::object inert = py::module_::import("neuroscope_fast.attachment").attr("InertTap");
        return py::make_tuple(inert, py::tuple()).release().ptr();
    } catch (py::error_already_set& error) {
        error.restore();
        return nullptr;
    }
}

PyTypeObject* tap_type() {
    static PyMethodDef methods[] = {{"__reduce__", reduce_tap, METH_NOARGS, nullptr}, {}};
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, reinterpret_cast<void*>(delete_tap)}, {Py_tp_methods, methods}, {0, nullptr}};
    static PyType_Spec spec = {"neuroscope_fast._core.Tap", sizeof(TapObject), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
    static auto* const type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));  // for ever
    if (type == nullptr) throw py::error_already_set();
    return type;
}

}  // namespace

py::object make_tap(Tap tap) {
    auto owned = std::make_unique<Tap>(std::move(tap));
    auto* const object = PyObject_New(TapObject, tap_type());
    if (object == nullptr) throw py::error_already_set();
    object->tap = owned.release();
    const auto self = py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(object));
    PyObject* function = PyCFunction_New(&tap_method, self.ptr());
    if (function == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(function);
}

bool Session::detach(const std::string& why) {
    if (!detaches) return false;
    if (closed.exchange(true)) return true;
    detached_by = why;
    const std::string message = "the capture has ended, and the model goes on without it: " + why;
    const py::object category = py::module_::import("neuroscope_fast.errors").attr("CaptureWarning");
    // Without a registry: each capture says it, whatever others have said at the same line.
    if (PyErr_WarnExplicit(category.ptr(), message.c_str(), "neuroscope_fast", 1, "neuroscope_fast",
                           nullptr) != 0) {
        throw py::error_already_set();
    }
    return true;
}

PyObject* capture_error() {
    // Never released: taps may raise until the interpreter is gone.
    static PyObject* const type =
        py::object(py::module_::import("neuroscope_fast.errors").attr("CaptureError")).release().ptr();
    return type;
}

}  // namespace nsf
