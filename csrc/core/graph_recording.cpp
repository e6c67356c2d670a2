#include "core/graph_recording.hpp"

#include <algorithm>
#include <stdexcept>

namespace nsf {

void GraphRecording::add(std::shared_ptr<const TapPlace> tap, const TensorView& view) {
    if (!engine_.in_graph(view)) {
        throw std::invalid_argument(
            "it is computed beside the CUDA graph that is being captured, and replays would run past it; "
            "keep the whole "
            "model on the graph's device and streams, or run it without the graph");
    }
    if (!slots_) slots_ = engine_.make_slots(view.device);
    Call call{std::move(tap), view.dtype, {}};
    for (const TapRule& rule : call.tap->rules) {
        const DType dtype = slot_dtype(rule, view.dtype);
        const auto same = [&](const TensorView& slot) { return slot.dtype == dtype; };
        if (std::none_of(call.slots.begin(), call.slots.end(), same)) {
            call.slots.push_back(engine_.put_into_slot(*slots_, view, dtype));
        }
    }
    calls_.push_back(std::move(call));
}

void GraphRecording::before_replay(void* stream) {
    if (slots_) engine_.before_replay(*slots_, stream);
}

std::uint64_t GraphRecording::store(std::size_t number, const Step& step, void* stream) {
    const Call& call = calls_[number];
    const TapPlace& tap = *call.tap;
    const StepFacts& facts = tap.facts_of(step);
    for (const TapRule& rule : tap.rules) {
        if (!rule.wants(facts, step.number)) continue;
        const DType dtype = slot_dtype(rule, call.computed);
        TensorView slot = *std::find_if(call.slots.begin(), call.slots.end(),
                                        [&](const TensorView& each) { return each.dtype == dtype; });
        slot.stream = stream;
        const Kept kept = keep_positions(rule.positions, facts, std::move(slot), tap.is_logits);
        if (kept.nothing) continue;
        const Origin origin{rule.stream, step.prompt, step.number, step.calls[tap.index] - 1};
        engine_.submit(origin, kept, rule.stored_as(call.computed), call.computed);
    }
    return call.slots.front().elements() * item_size(call.computed);
}

void GraphRecording::after_replay(void* stream) {
    if (slots_) engine_.after_replay(*slots_, stream);
}

}  // namespace nsf
