#include "bindings/computed_tap.hpp"

#include <stdexcept>
#include <utility>

#include "core/error.hpp"

namespace nsf {
namespace {

// Runs `action`; what it cannot do with its values is told as the hook's error.
template <typename Action>
auto of_hook(const ComputedTap& tap, Action action) {
    try {
        return action();
    } catch (const std::invalid_argument& error) {
        throw EngineError(tap.place.description + ": this attention cannot be captured: " + error.what());
    }
}

}  // namespace

std::unique_ptr<ComputedCall> ComputedCall::begin(std::shared_ptr<const ComputedTap> tap,
                                                  const py::handle& module, const py::handle& given,
                                                  const Shape& shape) {
    if (shape.size() != 4) throw std::invalid_argument("a computed tensor has four axes");
    Session& session = *tap->session;
    if (session.closed.load(std::memory_order_relaxed) || module.ptr() != tap->module) return nullptr;
    if (!session.clock.in_pass() && session.in_backward()) return nullptr;
    auto call = std::make_unique<ComputedCall>();
    call->since_ = TickClock::now();
    of_hook(*tap, [&] {
        py::object owner;
        const TensorView view = session.access.view(given.ptr(), owner);
        if (view.device != TensorView::host) {
            const py::gil_scoped_release released;
            if (session.engine.in_graph(view)) {
                throw std::invalid_argument(
                    "it would have to be computed in the CUDA graph that is being captured; capture query, "
                    "key, value or head_output, or run the model without the graph");
            }
        }
        session.fired[tap->place.index].fetch_add(1, std::memory_order_relaxed);
        const Step& step = session.clock.fire(tap->place.index);
        const StepFacts& facts = tap->place.facts_of(step);
        call->prompt_ = step.prompt;
        call->step_ = step.number;
        call->call_ = step.calls[tap->place.index] - 1;
        for (const TapRule& rule : tap->place.rules) {
            if (!rule.wants(facts, step.number)) continue;
            TensorView whole;
            whole.shape = shape;
            whole.strides.assign(shape.size(), 0);
            Kept kept = keep_positions(rule.positions, facts, std::move(whole), tap->place.sequence);
            if (!kept.nothing)
                call->wanted_.push_back({&rule, std::move(kept.selection), std::move(kept.note)});
        }
        const std::size_t axis = sequence_axis(tap->place.sequence, shape.size());
        if (facts.known() && shape[0] == facts.batch && shape[axis] == facts.length) {
            call->real_ = facts.mask;
            if (facts.offset >= 0) call->offset_ = facts.offset;
        }
    });
    if (call->wanted_.empty()) return nullptr;
    call->tap_ = std::move(tap);
    return call;
}

void ComputedCall::store(std::size_t number, const py::handle& tensor, std::optional<std::uint32_t> stream) {
    Session& session = *tap_->session;
    if (session.closed.load(std::memory_order_relaxed)) return;
    of_hook(*tap_, [&] {
        const Wanted& wanted = wanted_.at(number);
        py::object owner;
        TensorView view = session.access.view(tensor.ptr(), owner);
        const DType dtype = wanted.rule->stored_as(view.dtype);
        const std::uint64_t bytes = view.elements() * item_size(view.dtype);
        Kept kept;
        kept.shape = view.shape;
        kept.view = std::move(view);
        kept.note = wanted.note;
        try {
            const py::gil_scoped_release released;
            session.engine.submit({stream.value_or(wanted.rule->stream), prompt_, step_, call_}, kept, dtype);
            // Nobody will tell of the end of a step that no pass has opened.
            if (!session.clock.in_pass()) session.engine.end_step();
        } catch (const EngineError& error) {
            // A forward in another thread may meet the end of the block: that is no fault of the model's.
            if (session.closed.load(std::memory_order_relaxed)) return;
            if (!session.detach(error.what())) throw;
            return;
        }
        session.engine.count_tap(TickClock::since(since_), bytes);
        since_ = TickClock::now();
    });
}

}  // namespace nsf
