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
    // Whether every tensor is stored whole, once.
    bool takes_everything() const {
        return rules.size() == 1 && rules[0].positions.kind == PositionSpec::Kind::all &&
               rules[0].phase == TapRule::Phase::both && rules[0].every == 1;
    }
};

// Calls store(rule, origin, kept) for each rule that wants something of this call's tensor; view_of(rule) is the tensor.
template <typename ViewOf, typename Store>
void apply_rules(const TapPlace& tap, const Step& step, ViewOf view_of, Store store) {
    const StepFacts& facts = tap.facts_of(step);
    for (const TapRule& rule : tap.rules) {
        if (!rule.wants(facts, step.number)) continue;
        const Kept kept = keep_positions(rule.positions, facts, view_of(rule), tap.sequence);
        if (kept.nothing) continue;
        store(rule, Origin{rule.stream, step.prompt, step.number, step.calls[tap.index] - 1}, kept);
    }
}

}  // namespace nsf
