// Taps without hooks: what stands in the call of a module that nobody else has put a hook on.
//
// torch asks each module, before anything else, for a callable in its place (`_compiled_call_impl`, where Module.compile()
// puts its own). A TappedCall is one: it calls the module as torch would have, and the module's taps before and after it.
// That skips what torch does for hooks, which costs more than a small tensor's tap.
//
// Contract
//   A tap sees what a hook would have seen that was put on when the TappedCall was: as soon as the module has other hooks,
//   `to_hooks` is called, which makes hooks of the taps, in front of the others, and the call goes on through them. It
//   may be called at any time, by any thread, more than once: a call that is under way still takes each tensor once.
//   Everything here needs the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <vector>

namespace nsf {

namespace py = pybind11;

struct Session;

// A module's call that is under way on this thread, and takes for its taps what hooks would bring a second time.
class CallUnderWay {
  public:
    explicit CallUnderWay(PyObject* module) : module_(module), outer_(innermost) { innermost = this; }
    ~CallUnderWay() { innermost = outer_; }
    CallUnderWay(const CallUnderWay&) = delete;
    CallUnderWay& operator=(const CallUnderWay&) = delete;

    // Whether a tap in the call of `module` that is called now, by whomever, is to take its tensor.
    static bool lets_through(PyObject* module, bool is_input) {
        CallUnderWay* const call = innermost;
        if (call == nullptr || call->module_ != module || call->taps_now_) return true;
        if (is_input) return false;  // it was taken before the module was called
        call->hooks_took_output_ = true;
        return true;
    }

    // While the taps are called by this call itself.
    void taps_now(bool now) { taps_now_ = now; }
    // The module has become one with hooks while it ran.
    bool hooks_took_output() const { return hooks_took_output_; }

  private:
    inline static thread_local CallUnderWay* innermost = nullptr;

    PyObject* const module_;
    CallUnderWay* const outer_;
    bool taps_now_ = false;
    bool hooks_took_output_ = false;
};

// Those of one session that are on their modules.
class TappedCalls {
  public:
    void add(PyObject* call) { calls_.push_back(call); }
    void remove(PyObject* call) { std::erase(calls_, call); }
    // Makes hooks of the taps whose place in the module's call somebody else has taken: Module.compile() does.
    void make_hooks_of_displaced() const;

  private:
    std::vector<PyObject*> calls_;  // borrowed: each takes itself out when it goes
};

// before, after: tuples of make_tap()'s callables, for the inputs and the output; to_hooks: called without arguments.
py::object make_tapped_call(const std::shared_ptr<Session>& session, const py::object& module,
                            const py::tuple& before, const py::tuple& after, const py::object& to_hooks);

}  // namespace nsf
