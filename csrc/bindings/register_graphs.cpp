// What Python's watch over torch.cuda.CUDAGraph tells the engine.
#include <pybind11/pybind11.h>

#include <memory>
#include <utility>

#include "bindings/register.hpp"
#include "bindings/session.hpp"
#include "core/error.hpp"

namespace nsf {
namespace {

// The recording of one graph, and the session whose engine it uses until close(). The members change under the GIL only;
// what works without it holds them itself.
class SessionGraph {
  public:
    explicit SessionGraph(std::shared_ptr<Session> session)
        : session_(std::move(session)), recording_(std::make_shared<GraphRecording>(session_->engine)) {}
    ~SessionGraph() { close(); }
    SessionGraph(const SessionGraph&) = delete;
    SessionGraph& operator=(const SessionGraph&) = delete;

    void begin_capture() { session().graphs.begin(recording_); }
    void end_capture() {
        if (session_) session_->graphs.end(*recording_);
    }
    // Lets go of the session and keeps the slots, which the graph still writes.
    void close() {
        const std::shared_ptr<Session> session = std::exchange(session_, nullptr);
        if (!session) return;
        session->graphs.end(*recording_);
        const py::gil_scoped_release released;
        recording_->close();
    }
    std::size_t calls() const { return recording_->calls(); }

    void before_replay(std::uintptr_t stream) {
        const auto recording = recording_;
        const py::gil_scoped_release released;
        recording->before_replay(pointer(stream));
    }
    void store(std::size_t first, std::size_t last, std::uintptr_t stream) {
        const std::shared_ptr<Session> kept = session_;
        Session& used = session();
        // The recomputation of a checkpoint: its modules have been captured when they ran first.
        if (!used.clock.in_pass() && used.in_backward()) return;
        const auto recording = recording_;
        const py::gil_scoped_release released;
        recording->store(first, last, used.clock, pointer(stream), [&](const TapPlace& tap) {
            used.fired[tap.index].fetch_add(1, std::memory_order_relaxed);
        });
        // Nobody will tell of the end of a step that no pass has opened.
        if (first < last && !used.clock.in_pass()) used.engine.end_step();
    }

  private:
    static void* pointer(std::uintptr_t stream) { return reinterpret_cast<void*>(stream); }

    Session& session() const {
        if (!session_) throw EngineError("the capture that recorded this CUDA graph has ended");
        return *session_;
    }

    std::shared_ptr<Session> session_;
    const std::shared_ptr<GraphRecording> recording_;
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
        .def("before_replay", &SessionGraph::before_replay, "stream"_a)
        .def("store", &SessionGraph::store, "first"_a, "last"_a, "stream"_a);
}

}  // namespace nsf
