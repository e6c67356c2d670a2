// Streams and events.
#include <utility>

#include "runtime.hpp"

namespace nsf::stub {
namespace {

bool is_capturing(const Caller& caller, const Stream& stream) {
    return stream.legacy ? caller.state.legacy_capturing : stream.capturing;
}

// Whether it has ended; if so, what comes next is ordered after it, and if not, nothing is.
CUresult ask(const std::shared_ptr<Completion>& completion) {
    if (completion == nullptr) return code::success;
    if (!completion->ended()) return code::not_ready;
    const Seen seen;
    // acquire: pairs with the release in Stream::run().
    static_cast<void>(completion->done.load(std::memory_order_acquire));
    return code::success;
}

// An event may be asked for, and waited for, while another context is current.
CUresult state_of(const Event& event) {
    if (event.captured) return code::captured_event;
    return event.context->broken;
}

}  // namespace

extern "C" {

CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
    return call("cuStreamCreate", Needs::context, [&](Caller& caller) {
        if (stream == nullptr || flags > stream_non_blocking) return code::invalid_value;
        const std::uint64_t handle = caller.state.new_handle(0);
        const bool blocking = (flags & stream_non_blocking) == 0;
        auto made = std::make_unique<Stream>(caller.state, *caller.context, handle, blocking, false);
        caller.state.streams.emplace(handle, std::move(made)).first->second->start();
        *stream = handle_of<CUstream>(handle);
        return code::success;
    });
}

// Returns at once: what is queued is still executed.
CUresult cuStreamDestroy_v2(CUstream handle) {
    return call("cuStreamDestroy_v2", Needs::context_to_clean_up, [&](Caller& caller) {
        Stream* stream = caller.stream(handle);
        if (stream == nullptr || stream->legacy) return code::invalid_handle;
        stream->closed = true;
        stream->changed.notify_all();
        return code::success;
    });
}

CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned flags) {
    return call("cuStreamWaitEvent", Needs::context, [&](Caller& caller) {
        if (flags != 0) return code::invalid_value;
        Stream* stream = caller.stream(handle);
        const Event* event = find(caller.state.events, number(event_handle));
        if (stream == nullptr || event == nullptr) return code::invalid_handle;
        if (event->captured && !is_capturing(caller, *stream)) return code::capture_isolation;
        if (event->latest == nullptr) return code::success;
        auto operation = std::make_unique<Operation>();
        operation->kind = Kind::wait;
        operation->after.push_back(event->latest);
        caller.enqueue(*stream, std::move(operation));
        return code::success;
    });
}

CUresult cuStreamSynchronize(CUstream handle) {
    return call("cuStreamSynchronize", Needs::context, [&](Caller& caller) {
        if (would_break_a_capture(caller)) return code::capture_unsupported;
        const Stream* stream = caller.stream(handle);
        if (stream == nullptr) return code::invalid_handle;
        if (is_capturing(caller, *stream)) return code::capture_unsupported;
        const CUresult result = caller.wait(std::shared_ptr<Completion>(stream->last));
        return result == code::success ? caller.context->broken : result;
    });
}

CUresult cuStreamQuery(CUstream handle) {
    return call("cuStreamQuery", Needs::context, [&](Caller& caller) {
        const Stream* stream = caller.stream(handle);
        if (stream == nullptr) return code::invalid_handle;
        if (is_capturing(caller, *stream)) return code::capture_unsupported;
        const std::shared_ptr<Completion> last = stream->last;
        if (caller.state.reordering) caller.state.pump(caller.lock, 1);
        if (caller.context->broken != code::success) return caller.context->broken;
        return ask(last);
    });
}

CUresult cuThreadExchangeStreamCaptureMode(int* mode) {
    return call("cuThreadExchangeStreamCaptureMode", Needs::driver, [&](Caller&) {
        constexpr int relaxed = 2;
        if (mode == nullptr || *mode < 0 || *mode > relaxed) return code::invalid_value;
        std::swap(*mode, capture_mode());
        return code::success;
    });
}

CUresult cuStreamIsCapturing(CUstream handle, int* status) {
    return call("cuStreamIsCapturing", Needs::context, [&](Caller& caller) {
        if (status == nullptr) return code::invalid_value;
        const Stream* stream = caller.stream(handle);
        if (stream == nullptr) return code::invalid_handle;
        *status = is_capturing(caller, *stream) ? capture_status_active : 0;
        return code::success;
    });
}

CUresult cuEventCreate(CUevent* event, unsigned flags) {
    return call("cuEventCreate", Needs::context, [&](Caller& caller) {
        constexpr unsigned known_flags = 7, interprocess = 4;
        if (event == nullptr || flags > known_flags) return code::invalid_value;
        const bool timing = (flags & event_disable_timing) == 0;
        if ((flags & interprocess) != 0 && timing) return code::invalid_value;
        const std::uint64_t handle = caller.state.new_handle(1);
        caller.state.events.emplace(handle, Event{caller.context, timing, false, nullptr});
        *event = handle_of<CUevent>(handle);
        return code::success;
    });
}

// Waits that were enqueued keep what they wait for.
CUresult cuEventDestroy_v2(CUevent handle) {
    return call("cuEventDestroy_v2", Needs::context_to_clean_up, [&](Caller& caller) {
        const Event* event = find(caller.state.events, number(handle));
        if (event == nullptr || event->context != caller.context) return code::invalid_handle;
        caller.state.events.erase(number(handle));
        return code::success;
    });
}

CUresult cuEventRecord(CUevent event_handle, CUstream handle) {
    return call("cuEventRecord", Needs::context, [&](Caller& caller) {
        Stream* stream = caller.stream(handle);
        Event* event = find(caller.state.events, number(event_handle));
        if (stream == nullptr || event == nullptr || event->context != caller.context) {
            return code::invalid_handle;
        }
        auto operation = std::make_unique<Operation>();
        operation->kind = Kind::record;
        const bool captured = is_capturing(caller, *stream);
        // Before the enqueue, which may let go of the mutex.
        event->captured = captured;
        event->latest = captured ? nullptr : operation->completion;
        caller.enqueue(*stream, std::move(operation));
        return code::success;
    });
}

CUresult cuEventQuery(CUevent handle) {
    return call("cuEventQuery", Needs::context, [&](Caller& caller) {
        if (would_break_a_capture(caller)) return code::capture_unsupported;
        const Event* event = find(caller.state.events, number(handle));
        if (event == nullptr) return code::invalid_handle;
        const Event asked = *event;
        if (caller.state.reordering) caller.state.pump(caller.lock, 1);
        if (const CUresult result = state_of(asked); result != code::success) return result;
        return ask(asked.latest);
    });
}

CUresult cuEventSynchronize(CUevent handle) {
    return call("cuEventSynchronize", Needs::context, [&](Caller& caller) {
        if (would_break_a_capture(caller)) return code::capture_unsupported;
        const Event* event = find(caller.state.events, number(handle));
        if (event == nullptr) return code::invalid_handle;
        const Event asked = *event;
        if (const CUresult result = state_of(asked); result != code::success) return result;
        const CUresult result = caller.wait(asked.latest);
        return result == code::success ? state_of(asked) : result;
    });
}

CUresult cuEventElapsedTime(float* milliseconds, CUevent start_handle, CUevent end_handle) {
    return call("cuEventElapsedTime", Needs::context, [&](Caller& caller) {
        if (milliseconds == nullptr) return code::invalid_value;
        const Event* start = find(caller.state.events, number(start_handle));
        const Event* end = find(caller.state.events, number(end_handle));
        if (start == nullptr || end == nullptr || start->context != end->context) return code::invalid_handle;
        for (const Event* event : {start, end}) {
            if (const CUresult result = state_of(*event); result != code::success) return result;
            if (!event->timing || event->latest == nullptr) return code::invalid_handle;
        }
        if (!start->latest->ended() || !end->latest->ended()) return code::not_ready;
        using Milliseconds = std::chrono::duration<float, std::milli>;
        *milliseconds = Milliseconds(end->latest->when - start->latest->when).count();
        return code::success;
    });
}

}  // extern "C"

}  // namespace nsf::stub
