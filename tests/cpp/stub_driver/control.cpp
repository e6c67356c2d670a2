// stub_control.hpp: the machine, the timing of operations, failures, and what happened.
#include <algorithm>

#include "runtime.hpp"

namespace nsf::stub {
namespace {

// Everything below happens with the mutex held, out of ThreadSanitizer's sight.
template <typename Action>
auto with_state(Action action) {
    const Unseen unseen;
    std::unique_lock lock(runtime().mutex);
    return action(runtime(), lock);
}

template <typename Action>
void change(Action action) {
    with_state([&](Runtime& state, auto&) {
        action(state);
        state.wake_streams();
        state.host_changed.notify_all();
    });
}

template <typename Condition>
void wait_until(Condition condition) {
    with_state(
        [&](Runtime& state, auto& lock) { state.host_changed.wait(lock, [&] { return condition(state); }); });
}

Stream* stream_of(Runtime& state, const void* handle) {
    const auto found = state.streams.find(number(handle));
    return found == state.streams.end() ? nullptr : found->second.get();
}

template <typename Action>
void for_each_kind(Kind kinds, Action action) {
    for (std::size_t i = 0; i < kind_count; ++i) {
        if (includes(kinds, kind_at(i))) action(i);
    }
}

void set_hold(const void* handle, const std::function<void(Hold&)>& action) {
    change([&](Runtime& state) {
        if (handle == nullptr) {
            action(state.legacy_hold);
        } else if (Stream* stream = stream_of(state, handle)) {
            action(stream->own_hold);
        }
    });
}

// The streams that the handle stands for: one, or all legacy default streams.
bool is_meant(const Stream& stream, const void* handle) {
    return handle == nullptr ? stream.legacy : stream.handle == number(handle);
}

}  // namespace

void uninitialise() {
    change([](Runtime& state) { state.initialised = false; });
}

void deinitialise() {
    const Unseen unseen;
    runtime().end();
}

void set_device_count(int count) {
    change([&](Runtime& state) { state.device_count = std::clamp(count, 0, max_devices); });
}
void set_driver_version(int version) {
    change([&](Runtime& state) { state.driver_version = version; });
}
void set_memory(std::size_t free, std::size_t total) {
    change([&](Runtime& state) {
        state.free_memory = free;
        state.total_memory = total;
    });
}
void set_lockable_bytes(std::size_t bytes) {
    change([&](Runtime& state) { state.lockable = bytes; });
}
void set_attribute(int attribute, int value) {
    change([&](Runtime& state) { state.attributes[attribute] = value; });
}
void set_capturing(const void* stream, bool capturing) {
    change([&](Runtime& state) {
        if (stream == nullptr) {
            state.legacy_capturing = capturing;
        } else if (Stream* found = stream_of(state, stream)) {
            found->capturing = capturing;
        }
    });
}

void set_global_capture(bool capturing) {
    change([&](Runtime& state) { state.global_capture = capturing; });
}

void register_kernel(const std::string& name, std::vector<Parameter> parameters, Kernel kernel) {
    change([&](Runtime& state) {
        state.kernels[name] = std::make_shared<const RegisteredKernel>(
            RegisteredKernel{name, std::move(parameters), std::move(kernel)});
    });
}

void hold(Kind kinds) {
    change([&](Runtime& state) { for_each_kind(kinds, [&](auto i) { state.holds[i].on = true; }); });
}
void step(Kind kinds, unsigned count) {
    change([&](Runtime& state) { for_each_kind(kinds, [&](auto i) { state.holds[i].allowed += count; }); });
}
void release(Kind kinds) {
    change([&](Runtime& state) { for_each_kind(kinds, [&](auto i) { state.holds[i] = {}; }); });
}
void hold_stream(const void* stream) {
    set_hold(stream, [](Hold& hold) { hold.on = true; });
}
void step_stream(const void* stream, unsigned count) {
    set_hold(stream, [&](Hold& hold) { hold.allowed += count; });
}
void release_stream(const void* stream) {
    set_hold(stream, [](Hold& hold) { hold = {}; });
}

void wait_until_held(Kind kinds, unsigned count) {
    wait_until([&](Runtime& state) {
        return std::count_if(state.streams.begin(), state.streams.end(), [&](const auto& entry) {
                   return entry.second->is_held(kinds);
               }) >= static_cast<std::ptrdiff_t>(count);
    });
}
void wait_until_held_stream(const void* stream) {
    wait_until([&](Runtime& state) {
        return std::any_of(state.streams.begin(), state.streams.end(), [&](const auto& entry) {
            return is_meant(*entry.second, stream) && entry.second->is_held(Kind::all);
        });
    });
}
void wait_until_executed(Kind kinds, std::uint64_t count) {
    wait_until([&](Runtime& state) {
        std::uint64_t sum = 0;
        for_each_kind(kinds, [&](auto i) { sum += state.executed_counts[i]; });
        return sum >= count;
    });
}
std::size_t pending(const void* stream) {
    return with_state([&](Runtime& state, auto&) {
        std::size_t sum = 0;
        for (const auto& [handle, candidate] : state.streams) {
            if (is_meant(*candidate, stream))
                sum += candidate->queue.size() + (candidate->current != nullptr);
        }
        return sum;
    });
}

void seed(std::uint64_t value) {
    change([&](Runtime& state) { state.seed = value; });
}
void delay(Kind kinds, std::chrono::microseconds min, std::chrono::microseconds max) {
    change([&](Runtime& state) { for_each_kind(kinds, [&](auto i) { state.delays[i] = {min, max}; }); });
}
void delay_stream(const void* stream, std::chrono::microseconds min, std::chrono::microseconds max) {
    change([&](Runtime& state) {
        if (stream == nullptr) {
            state.legacy_delay = {min, max};
            state.legacy_delayed = true;
        } else if (Stream* found = stream_of(state, stream)) {
            found->own_delay.emplace(min, max);
        }
    });
}
void reorder(std::uint64_t seed, std::chrono::milliseconds patience) {
    change([&](Runtime& state) {
        state.reordering.emplace(seed);
        state.patience = patience;
    });
}

void fail_call(std::uint64_t n, int code, std::string name) {
    change([&](Runtime& state) { state.call_failures.push_back({n, code, std::move(name)}); });
}
void fail_asynchronously(std::uint64_t n, int code, Kind kinds) {
    change([&](Runtime& state) { state.operation_failures.push_back({n, code, {}, kinds}); });
}
void break_context(int device, int code) {
    change([&](Runtime& state) {
        state.break_context(state.contexts.at(static_cast<std::size_t>(device)), code);
    });
}
std::size_t failures_left() {
    return with_state(
        [](Runtime& state, auto&) { return state.call_failures.size() + state.operation_failures.size(); });
}

std::uint64_t call_count() {
    return with_state([](Runtime& state, auto&) { return std::uint64_t{state.calls.size()}; });
}
std::uint64_t call_count(std::string_view name) { return calls(name).size(); }
std::vector<Call> calls(std::uint64_t since) {
    return with_state([&](Runtime& state, auto&) {
        const auto begin = static_cast<std::ptrdiff_t>(std::min<std::uint64_t>(since, state.calls.size()));
        return std::vector<Call>(state.calls.begin() + begin, state.calls.end());
    });
}
std::vector<Call> calls(std::string_view name) {
    std::vector<Call> all = calls(0);
    std::erase_if(all, [&](const Call& call) { return call.name != name; });
    return all;
}
std::vector<Executed> executed() {
    return with_state([](Runtime& state, auto&) {
        return std::vector<Executed>(state.executed.begin(), state.executed.end());
    });
}
std::uint64_t executed_count(Kind kinds) {
    return with_state([&](Runtime& state, auto&) {
        std::uint64_t sum = 0;
        for_each_kind(kinds, [&](auto i) { sum += state.executed_counts[i]; });
        return sum;
    });
}

Counters counters() {
    return with_state([](Runtime& state, auto&) {
        Counters result = state.counters;
        for (const Context& context : state.contexts) {
            result.allocated_bytes += context.memory.allocated();
            result.allocations += context.memory.count();
        }
        result.registered_bytes = state.locked;
        result.registrations = state.registrations.all().size();
        for (const auto& [handle, stream] : state.streams)
            result.streams += !stream->legacy && !stream->closed;
        result.events = state.events.size();
        result.modules = state.modules.size();
        return result;
    });
}

}  // namespace nsf::stub
