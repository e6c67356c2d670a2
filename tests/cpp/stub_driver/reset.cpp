// reset(): what is left over, and the way back to a fresh machine.
#include <string>

#include "runtime.hpp"

namespace nsf::stub {
namespace {

std::string on_device(const Context& context) { return " on device " + std::to_string(context.device); }

void list_streams(const Runtime& state, std::vector<std::string>& found) {
    for (const auto& [handle, stream] : state.streams) {
        const std::size_t operations = stream->queue.size() + (stream->current != nullptr);
        const std::string unfinished = " with " + std::to_string(operations) + " unfinished operations";
        if (stream->legacy || stream->closed) {
            if (operations == 0) continue;
            found.push_back((stream->legacy ? "the default stream" : "a destroyed stream") +
                            on_device(stream->context) + unfinished);
        } else {
            found.push_back("a stream" + on_device(stream->context) + unfinished);
        }
    }
}

std::vector<std::string> left_over(const Runtime& state) {
    std::vector<std::string> found = state.problems;
    list_streams(state, found);
    for (const auto& [handle, event] : state.events) found.push_back("an event" + on_device(*event.context));
    for (const auto& [handle, module] : state.modules)
        found.push_back("a module" + on_device(*module.context));
    for (const auto& [begin, registration] : state.registrations.all()) {
        found.push_back("a registration of " + std::to_string(registration.bytes) + " bytes");
    }
    for (const Context& context : state.contexts) {
        for (const auto& [address, allocation] : context.memory.live()) {
            const std::string what = "an allocation of " + std::to_string(allocation->bytes()) + " bytes";
            found.push_back(what + on_device(context));
            if (!allocation->guards_are_whole())
                found.push_back("the guard zone of " + what + " was written to");
        }
        if (context.references == 0) continue;
        found.push_back("the primary context" + on_device(context) + ", retained " +
                        std::to_string(context.references) + " times");
    }
    if (state.contexts_on_stacks != 0) {
        found.push_back(std::to_string(state.contexts_on_stacks) + " contexts on the stacks of threads");
    }
    return found;
}

}  // namespace

std::vector<std::string> reset() {
    if (runtime().forked) return {};
    const Unseen unseen;
    Runtime& state = runtime();
    std::unique_lock lock(state.mutex);
    // What could not be given back because the driver was gone is nobody's fault.
    std::vector<std::string> found;
    if (!state.ended) found = left_over(state);

    for (const auto& [handle, stream] : state.streams) stream->drop();
    state.wake_streams();
    state.host_changed.notify_all();
    state.host_changed.wait(lock, [&] { return state.streams.empty() && state.awaited.empty(); });
    {
        const Seen seen;
        // acquire: pairs with the release of every stream that ended.
        static_cast<void>(state.streams_ended.load(std::memory_order_acquire));
    }
    for (Context& context : state.contexts) {
        context.references = 0;
        context.broken = code::success;
        context.legacy = nullptr;
        context.memory.clear();
    }
    state.events.clear();
    state.captured.clear();
    state.graphs.clear();
    state.modules.clear();
    state.functions.clear();
    state.registrations.clear();
    state.locked = 0;
    ++state.generation;
    state.contexts_on_stacks = 0;
    state.problems.clear();
    state.calls.clear();
    state.executed.clear();
    state.executed_counts = {};
    state.counters = {};
    state.set_defaults();
    state.ended = false;
    return found;
}

}  // namespace nsf::stub
