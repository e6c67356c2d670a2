// One capture as the taps see it: the engine, the clock that numbers forward passes, and the way into
// tensors.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bindings/known_tensor.hpp"
#include "bindings/python_kernels.hpp"
#include "bindings/tensor_access.hpp"
#include "core/engine.hpp"
#include "core/graph_recording.hpp"
#include "core/step_clock.hpp"
#include "core/tap_rule.hpp"
#include "cuda/cuda_transfer.hpp"

namespace nsf {

// The CUDA graphs that are being captured now, by the thread that does it.
class GraphsInCapture {
  public:
    void begin(std::shared_ptr<GraphRecording> recording) {
        const std::lock_guard lock(mutex_);
        graphs_.emplace_back(std::this_thread::get_id(), std::move(recording));
        count_.store(graphs_.size(), std::memory_order_relaxed);
    }
    // From any thread; does nothing where it had not begun.
    void end(const GraphRecording& recording) {
        const std::lock_guard lock(mutex_);
        std::erase_if(graphs_, [&](const auto& each) { return each.second.get() == &recording; });
        count_.store(graphs_.size(), std::memory_order_relaxed);
    }
    // That the calling thread captures; null for none.
    std::shared_ptr<GraphRecording> here() {
        // relaxed: a thread sees what it has begun itself.
        if (count_.load(std::memory_order_relaxed) == 0) return nullptr;
        const std::lock_guard lock(mutex_);
        const auto found = std::find_if(graphs_.rbegin(), graphs_.rend(), [](const auto& each) {
            return each.first == std::this_thread::get_id();
        });
        return found == graphs_.rend() ? nullptr : found->second;
    }

  private:
    std::mutex mutex_;
    std::vector<std::pair<std::thread::id, std::shared_ptr<GraphRecording>>> graphs_;
    std::atomic<std::size_t> count_{0};
};

struct Session {
    Session(EngineOptions options, std::vector<Stream> streams, std::size_t taps, std::uint32_t first_prompt,
            TensorAccessMethod method, cuda::CudaOptions cuda_options)
        : engine(std::move(options), std::move(streams),
                 [this, cuda_options](BlockRing& ring) {
                     return std::make_unique<cuda::CudaTransfer>(ring, cuda_options, kernels);
                 }),
          clock(taps, first_prompt),
          access(method),
          fired(taps) {
        const py::module_ torch = py::module_::import("torch._C");
        graph_task = py::getattr(torch, "_current_graph_task_id", py::none());
    }

    // With on_error='detach': ends the capture because of a failure, warns of it, and the model goes on. False, and
    // nothing done, where failures are raised. With the GIL held; throws where warnings are errors.
    bool detach(const std::string& why);

    // Whether autograd is running backward: a module that runs then is the recomputation of a checkpoint.
    bool in_backward() const { return !graph_task.is_none() && graph_task().cast<int>() != -1; }

    PythonKernels kernels;  // before the engine, which uses it to its end
    Engine engine;
    StepClock clock;
    TensorAccess access;
    py::object graph_task;  // torch._C._current_graph_task_id, or None where this torch has no such thing
    std::atomic<bool> closed{false};  // a tap that is still called, by a forward that goes on, does nothing
    std::vector<std::atomic<std::uint64_t>> fired;  // by tap: the calls of its module
    bool detaches = false;
    std::string detached_by;  // why detach() ended the capture; read and written with the GIL held
    GraphsInCapture graphs;
};

// The native callable on one side of one module.
struct Tap {
    std::shared_ptr<Session> session;
    PyObject* module = nullptr;  // that it was made for, never followed: a copy of the model is not captured
    bool is_input = false;       // a forward pre-hook (with kwargs) rather than a forward hook
    std::string field;           // take this field of the output, or this parameter; empty: the first tensor
    Py_ssize_t argument = -1;    // of a parameter: its place among the positional ones
    std::shared_ptr<const TapPlace> place;  // shared with the recordings of CUDA graphs
    KnownTensor known;                      // where the place takes everything
};

// A Python callable for register_forward_hook, or for register_forward_pre_hook(…, with_kwargs=True). It
// returns None: the model's values are never replaced. Errors are raised as
// neuroscope_fast.errors.CaptureError.
py::object make_tap(Tap tap);

// neuroscope_fast.errors.CaptureError (borrowed; lives as long as the interpreter).
PyObject* capture_error();

}  // namespace nsf
