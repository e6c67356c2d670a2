// What a tap stores of the tensors that it is given, and when.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/dtype.hpp"
#include "core/positions.hpp"
#include "core/step_clock.hpp"

namespace nsf {

// One stream that a tap feeds: when, what of the tensor, and as what.
struct TapRule {
    enum class Phase : std::uint8_t { both, prefill, decode };

    std::uint32_t stream = 0;
    std::optional<DType> dtype;  // of float tensors; integers, bool and complex are stored as they are
    PositionSpec positions;
    Phase phase = Phase::both;
    std::uint32_t every = 1;

    DType stored_as(DType computed) const { return dtype && is_floating(computed) ? *dtype : computed; }
    // Throws std::invalid_argument where the answer depends on what is not known of the pass.
    bool wants(const StepFacts& facts, std::uint32_t step) const;
    // Whether a pass like this one is wanted under another number.
    bool wants_other_steps(const StepFacts& facts) const;
};

// A tap as the engine knows it, on whatever module it stands.
struct TapPlace {
    std::size_t index = 0;                       // in the clock's call counters
    SequenceKind sequence = SequenceKind::pass;  // what the rows of its tensors are
    bool in_encoder = false;  // of an encoder-decoder model: another sequence than the root's
    std::string description;  // "hook 'a' on layer 'b'", for errors
    std::vector<TapRule> rules;

    const StepFacts& facts_of(const Step& step) const { return in_encoder ? step.encoder_facts : step.facts; }
};

}  // namespace nsf
