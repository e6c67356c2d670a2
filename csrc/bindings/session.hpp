// One capture as the taps see it: the engine, the clock that numbers forward passes, and the way into
// tensors.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings/tensor_access.hpp"
#include "core/engine.hpp"
#include "core/positions.hpp"
#include "core/step_clock.hpp"

namespace nsf {

struct Session {
    Session(EngineOptions options, std::vector<Stream> streams, std::size_t taps, TensorAccessMethod method)
        : engine(std::move(options), std::move(streams)), clock(taps), access(method), fired(taps) {}

    Engine engine;
    StepClock clock;
    TensorAccess access;
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

    bool wants(const Step& step) const {
        if (phase == Phase::prefill && step.facts.decode) return false;
        if (phase == Phase::decode && !step.facts.decode) return false;
        return step.number % every == 0;
    }
};

// The native callable on one side of one module.
struct Tap {
    std::shared_ptr<Session> session;
    std::size_t index = 0;    // in the clock's call counters
    bool is_input = false;    // a forward pre-hook (with kwargs) rather than a forward hook
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
