// What every driver function does before and after its own business.
#include <algorithm>

#include "runtime.hpp"

namespace nsf::stub {

int& capture_mode() {
    static thread_local int mode = 0;
    return mode;
}

bool would_break_a_capture(const Caller& caller) {
    return caller.state.global_capture && capture_mode() == 0;
}

Caller::Caller(std::string_view name, Needs needs)
    : state(runtime()),
      lock(state.mutex),
      needs_(needs),
      generation_(state.generation),
      place_(state.calls.size()) {
    state.calls.push_back({name, std::this_thread::get_id()});
    refusal = admit(name);
}

Caller::~Caller() = default;

CUresult Caller::admit(std::string_view name) {
    CUresult planned = code::success;
    for (auto plan = state.call_failures.begin(); plan != state.call_failures.end();) {
        if (!(plan->name.empty() || plan->name == name) || !plan->count()) {
            ++plan;
            continue;
        }
        if (planned == code::success) planned = plan->result;
        plan = state.call_failures.erase(plan);
    }
    if (planned != code::success) return planned;
    if (needs_ == Needs::nothing) return code::success;
    if (!state.initialised) return code::not_initialized;
    if (needs_ == Needs::driver) return code::success;
    const ContextStack& stack = context_stack();
    if (stack.empty()) return code::invalid_context;
    context = stack.back();
    if (context->references == 0) return code::context_is_destroyed;
    return needs_ == Needs::context ? context->broken : code::success;
}

CUresult Caller::finish(CUresult result) {
    if (result == code::success && needs_ == Needs::context_to_clean_up) result = context->broken;
    if (generation_ == state.generation && place_ < state.calls.size()) state.calls[place_].result = result;
    return result;
}

Stream* Caller::stream(CUstream handle) {
    constexpr std::uint64_t legacy_handle = 1;  // CU_STREAM_LEGACY
    if (handle == nullptr || number(handle) == legacy_handle) {
        if (context->legacy == nullptr) {
            const std::uint64_t made = state.new_handle(0);
            auto stream = std::make_unique<Stream>(state, *context, made, true, true);
            context->legacy = stream.get();
            state.streams.emplace(made, std::move(stream)).first->second->start();
        }
        return context->legacy;
    }
    const auto found = state.streams.find(number(handle));
    if (found == state.streams.end()) return nullptr;
    Stream& stream = *found->second;
    return stream.closed || stream.legacy || &stream.context != context ? nullptr : &stream;
}

std::shared_ptr<Completion> Caller::enqueue(Stream& stream, std::unique_ptr<Operation> operation) {
    if (stream.legacy ? state.legacy_capturing : stream.capturing) {
        ++state.counters.captured;
        state.captured.push_back(std::move(operation));
        return nullptr;
    }
    // The legacy default stream waits for every blocking stream, and they for it.
    if (stream.legacy) {
        for (const auto& [handle, other] : state.streams) {
            if (other->blocking && other.get() != &stream && &other->context == context && other->last) {
                operation->after.push_back(other->last);
            }
        }
    } else if (stream.blocking && context->legacy != nullptr && context->legacy->last) {
        operation->after.push_back(context->legacy->last);
    }
    const std::shared_ptr<Completion> completion = operation->completion;
    {
        const Seen seen;
        // release: pairs with the acquire in Stream::run(); what the host did before comes before the execution.
        operation->published.store(true, std::memory_order_release);
    }
    stream.last = completion;
    stream.queue.push_back(std::move(operation));
    stream.changed.notify_all();
    if (state.reordering) state.pump(lock, 0);
    return completion;
}

CUresult Caller::wait(const std::shared_ptr<Completion>& completion) {
    if (completion == nullptr) return code::success;
    const auto place = state.awaited.insert(state.awaited.end(), completion);
    state.advance();
    state.host_changed.wait(lock, [&] { return completion->ended() || state.ended; });
    state.awaited.erase(place);
    if (!completion->ended()) return code::deinitialized;
    const Seen seen;
    // acquire: pairs with the release in Stream::run(); what comes next is ordered after the operation.
    static_cast<void>(completion->done.load(std::memory_order_acquire));
    return code::success;
}

}  // namespace nsf::stub
