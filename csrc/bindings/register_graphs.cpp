// What Python's watch over torch.cuda.CUDAGraph tells the engine.
#include <pybind11/pybind11.h>

#include <chrono>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>

#include "bindings/register.hpp"
#include "bindings/session.hpp"
#include "core/error.hpp"

namespace nsf {
namespace {

using Clock = std::chrono::steady_clock;
using Released = py::call_guard<py::gil_scoped_release>;

// The recording of one graph, and the session whose engine it uses.
class SessionGraph {
  public:
    explicit SessionGraph(std::shared_ptr<Session> session)
        : session_(std::move(session)), recording_(std::in_place, session_->engine) {}
    ~SessionGraph() { end_capture(); }
    SessionGraph(const SessionGraph&) = delete;
    SessionGraph& operator=(const SessionGraph&) = delete;

    void begin_capture() { open().begin(*recording_); }
    void end_capture() {
        if (session_) session_->graphs.end(*recording_);
    }
    // Lets go of the session and keeps the slots, which the graph still writes.
    void close() {
        end_capture();
        if (recording_) slots_ = recording_->take_slots();
        recording_.reset();
        session_.reset();
    }
    std::size_t calls() const { return recording_ ? recording_->calls() : 0; }

    void before_replay(std::uintptr_t stream) {
        open();
        recording_->before_replay(pointer(stream));
    }
    void store(std::size_t first, std::size_t last, std::uintptr_t stream) {
        open();
        if (first > last || last > calls()) throw std::invalid_argument("no such calls");
        for (std::size_t call = first; call < last; ++call) store_call(call, pointer(stream));
        // Nobody will tell of the end of a step that no pass has opened.
        if (!session_->clock.in_pass()) session_->engine.end_step();
    }
    void after_replay(std::uintptr_t stream) {
        open();
        recording_->after_replay(pointer(stream));
    }

  private:
    static void* pointer(std::uintptr_t stream) { return reinterpret_cast<void*>(stream); }

    GraphsInCapture& open() const {
        if (!session_) throw EngineError("the capture that recorded this CUDA graph has ended");
        return session_->graphs;
    }

    void store_call(std::size_t call, void* stream) {
        const auto start = Clock::now();
        const TapPlace& place = recording_->tap(call);
        session_->fired[place.index].fetch_add(1, std::memory_order_relaxed);
        const Step& step = session_->clock.fire(place.index);
        try {
            const std::uint64_t bytes = recording_->store(call, step, stream);
            session_->engine.count_tap(Clock::now() - start, bytes);
        } catch (const std::invalid_argument& error) {
            throw EngineError(place.description +
                              ": the tensor of a CUDA graph cannot be captured: " + error.what());
        }
    }

    std::shared_ptr<Session> session_;
    std::optional<GraphRecording> recording_;
    std::unique_ptr<GraphSlots> slots_;  // once closed
};

}  // namespace

void register_graphs(py::module_& module) {
    using namespace py::literals;
    py::class_<SessionGraph>(
        module, "GraphRecording",
        "The taps that fired while a CUDA graph was captured; see core/graph_recording.hpp.")
        .def(py::init<std::shared_ptr<Session>>(), "session"_a)
        .def("close", &SessionGraph::close)
        .def("begin_capture", &SessionGraph::begin_capture)
        .def("end_capture", &SessionGraph::end_capture)
        .def_property_readonly("calls", &SessionGraph::calls)
        .def("before_replay", &SessionGraph::before_replay, "stream"_a, Released())
        .def("store", &SessionGraph::store, "first"_a, "last"_a, "stream"_a, Released())
        .def("after_replay", &SessionGraph::after_replay, "stream"_a, Released());
}

}  // namespace nsf
