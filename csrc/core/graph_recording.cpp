#include "core/graph_recording.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "core/error.hpp"

namespace nsf {

Engine& GraphRecording::engine() const {
    if (engine_ == nullptr) throw EngineError("the capture that recorded this CUDA graph has ended");
    return *engine_;
}

void GraphRecording::add(std::shared_ptr<const TapPlace> tap, const TensorView& view) {
    const std::lock_guard lock(mutex_);
    if (!engine().in_graph(view)) {
        throw std::invalid_argument(
            "it is computed beside the CUDA graph that is being captured, and replays would run past it; "
            "keep the whole model on the graph's device and streams, or run it without the graph");
    }
    if (!slots_) slots_ = engine_->make_slots(view.device);
    Call call{std::move(tap), view.dtype, {}};
    for (const TapRule& rule : call.tap->rules) {
        const DType dtype = slot_dtype(rule, view.dtype);
        const auto same = [&](const TensorView& slot) { return slot.dtype == dtype; };
        if (std::none_of(call.slots.begin(), call.slots.end(), same)) {
            call.slots.push_back(engine_->put_into_slot(*slots_, view, dtype));
        }
    }
    calls_.push_back(std::move(call));
}

std::size_t GraphRecording::calls() const {
    const std::lock_guard lock(mutex_);
    return calls_.size();
}

void GraphRecording::before_replay(void* stream) {
    const std::lock_guard lock(mutex_);
    if (slots_) engine().before_replay(*slots_, stream);
}

void GraphRecording::store(std::size_t first, std::size_t last, StepClock& clock, void* stream,
                           const std::function<void(const TapPlace&)>& fired) {
    const std::lock_guard lock(mutex_);
    engine();
    if (first > last || last > calls_.size()) throw EngineError("a CUDA graph has no such calls of taps");
    if (first == last) return;
    try {
        for (std::size_t number = first; number < last; ++number) {
            const Call& call = calls_[number];
            fired(*call.tap);
            store_call(call, clock.fire(call.tap->index), stream);
        }
    } catch (...) {
        try {
            engine_->after_replay(*slots_, stream);
        } catch (const EngineError&) {
            // The engine is broken by it, and keeps why; the first error goes on.
        }
        throw;
    }
    engine_->after_replay(*slots_, stream);
}

void GraphRecording::store_call(const Call& call, const Step& step, void* stream) {
    const std::uint64_t start = TickClock::now();
    const TapPlace& tap = *call.tap;
    const auto slot_of = [&](const TapRule& rule) {
        const DType dtype = slot_dtype(rule, call.computed);
        TensorView slot = *std::find_if(call.slots.begin(), call.slots.end(),
                                        [&](const TensorView& each) { return each.dtype == dtype; });
        slot.stream = stream;
        return slot;
    };
    try {
        apply_rules(tap, step, slot_of, [&](const TapRule& rule, const Origin& origin, const Kept& kept) {
            engine_->submit(origin, kept, rule.stored_as(call.computed), call.computed);
        });
    } catch (const std::invalid_argument& error) {
        throw EngineError(tap.description +
                          ": the tensor of a CUDA graph cannot be captured: " + error.what());
    }
    engine_->count_tap(TickClock::since(start), call.slots.front().elements() * item_size(call.computed));
}

void GraphRecording::close() {
    const std::lock_guard lock(mutex_);
    engine_ = nullptr;
}

}  // namespace nsf
