// One capture as the taps see it: the engine, the clock that numbers forward passes, and the way into
// tensors.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings/python_kernels.hpp"
#include "bindings/tensor_access.hpp"
#include "core/engine.hpp"
#include "core/positions.hpp"
#include "core/step_clock.hpp"
#include "cuda/cuda_transfer.hpp"

namespace nsf {

struct Session {
    Session(EngineOptions options, std::vector<Stream> streams, std::size_t taps, TensorAccessMethod method,
            cuda::CudaOptions cuda_options)
        : engine(std::move(options), std::move(streams),
                 [this, cuda_options](BlockRing& ring) {
                     return std::make_unique<cuda::CudaTransfer>(ring, cuda_options, kernels);
                 }),
          clock(taps),
          access(method),
          fired(taps) {
        const py::module_ torch = py::module_::import("torch._C");
        graph_task = py::getattr(torch, "_current_graph_task_id", py::none());
    }

    // Whether autograd is running backward: a module that runs then is the recomputation of a checkpoint.
    bool in_backward() const { return !graph_task.is_none() && graph_task().cast<int>() != -1; }

    PythonKernels kernels;  // before the engine, which uses it to its end
    Engine engine;
    StepClock clock;
    TensorAccess access;
    py::object graph_task;  // torch._C._current_graph_task_id, or None where this torch has no such thing
    std::atomic<bool> closed{false};  // a tap that is still called, by a forward that goes on, does nothing
    std::vector<std::atomic<std::uint64_t>> fired;  // by tap: the calls of its module
};

// One stream that a tap feeds: when, what of the tensor, and as what.
struct TapRule {
    enum class Phase : std::uint8_t { both, prefill, decode };

    std::uint32_t stream = 0;
    std::optional<DType> dtype;  // of float tensors; integers, bool and complex are stored as they are
    PositionSpec positions;
    Phase phase = Phase::both;
    std::uint32_t every = 1;

    // Throws std::invalid_argument where the answer depends on what is not known of the pass.
    bool wants(const StepFacts& facts, std::uint32_t step) const {
        const bool by_number =
            positions.kind == PositionSpec::Kind::list || positions.kind == PositionSpec::Kind::slice;
        if (!facts.known() && (phase != Phase::both || by_number)) {
            throw std::invalid_argument(
                "nothing is known of this forward pass (no token ids among its inputs), so its phase and "
                "positions "
                "cannot be told; run the model itself, or capture both phases and all positions");
        }
        if (phase == Phase::prefill && facts.decode) return false;
        if (phase == Phase::decode && !facts.decode) return false;
        return step % every == 0;
    }
    // Whether a pass like this one is wanted under another number.
    bool wants_other_steps(const StepFacts& facts) const {
        return every > 1 && !(phase == Phase::prefill && facts.decode) &&
               !(phase == Phase::decode && !facts.decode);
    }
};

// The native callable on one side of one module.
struct Tap {
    std::shared_ptr<Session> session;
    PyObject* module = nullptr;  // that it was made for, never followed: a copy of the model is not captured
    std::size_t index = 0;       // in the clock's call counters
    bool is_input = false;       // a forward pre-hook (with kwargs) rather than a forward hook
    SequenceKind sequence = SequenceKind::pass;  // what the rows of its tensors are
    bool in_encoder = false;  // of an encoder-decoder model: another sequence than the root's
    std::string field;        // take this field of the output; empty: its first tensor
    std::string description;  // "hook 'a' on layer 'b'", for errors
    std::vector<TapRule> rules;
};

// A Python callable for register_forward_hook, or for register_forward_pre_hook(…, with_kwargs=True). It
// returns None: the model's values are never replaced. Errors are raised as
// neuroscope_fast.errors.CaptureError.
py::object make_tap(Tap tap);

// neuroscope_fast.errors.CaptureError (borrowed; lives as long as the interpreter).
PyObject* capture_error();

}  // namespace nsf
