#include "runtime.hpp"

#include <algorithm>

namespace nsf::stub {
namespace {

// Made when the library is loaded, never destroyed: no initialisation guard that every thread would acquire.
Runtime* const the_runtime = [] {
    const Unseen unseen;
    auto* made = new Runtime;
    for (int device = 0; device < max_devices; ++device) {
        made->contexts[static_cast<std::size_t>(device)].device = device;
    }
    made->set_defaults();
    return made;
}();

}  // namespace

Runtime& runtime() { return *the_runtime; }

ContextStack& context_stack() {
    static thread_local ContextStack stack;
    // What a thread leaves on its stack when it ends is not left on a stack.
    struct End {
        ~End() {
            const Unseen unseen;
            const std::lock_guard lock(the_runtime->mutex);
            if (stack.belongs_to(the_runtime->generation)) {
                the_runtime->contexts_on_stacks -= static_cast<std::int64_t>(stack.size());
            }
            stack.clear();
        }
    };
    static thread_local const End end;
    static_cast<void>(end);
    stack.begin_generation(the_runtime->generation);
    return stack;
}

CUcontext handle_of(const Context& context) {
    return handle_of<CUcontext>((std::uint64_t{0x57C0} << 48) +
                                static_cast<std::uint64_t>(context.device) * 16);
}

// What reset() goes back to. Threads, handles and logs are not its business.
void Runtime::set_defaults() {
    device_count = 1;
    driver_version = 13000;
    free_memory = std::size_t{15} << 30;
    total_memory = std::size_t{16} << 30;
    lockable = std::size_t{1} << 40;
    attributes = {
        {1, 1024},     // threads in a block
        {8, 49152},    // bytes of shared memory in a block
        {10, 32},      // threads in a warp
        {16, 132},     // multiprocessors
        {19, 1},       // host memory can be mapped
        {41, 1},       // unified addressing
        {75, 9},       // compute capability
        {76, 0},       // "
        {81, 233472},  // bytes of shared memory in a multiprocessor
        {91, 1},       // registered host memory has the same address on the device
        {97, 232448},  // bytes of shared memory that a block may ask for
        {99, 1},       // host memory can be registered
    };
    seed = 0;
    streams_made = 0;
    holds = {};
    delays = {};
    legacy_hold = {};
    legacy_delay = {};
    legacy_delayed = false;
    legacy_capturing = false;
    global_capture = false;
    reordering.reset();
    turn = nullptr;
    credits = 0;
    call_failures.clear();
    operation_failures.clear();
    kernels.clear();
}

Context* Runtime::context_of(CUcontext handle) {
    for (Context& context : contexts) {
        if (handle_of(context) == handle) return &context;
    }
    return nullptr;
}

bool Runtime::anything_runs(const Context* context) const {
    return std::any_of(streams.begin(), streams.end(), [&](const auto& entry) {
        const Stream& stream = *entry.second;
        return stream.current != nullptr && (context == nullptr || &stream.context == context);
    });
}

std::size_t Runtime::users_of(std::uint64_t begin, std::size_t bytes) const {
    std::size_t users = 0;
    for (const auto& [handle, stream] : streams) {
        if (stream->context.broken != code::success) continue;  // nothing is executed there any more
        if (stream->current != nullptr && stream->current->uses(begin, bytes)) ++users;
        for (const auto& operation : stream->queue) users += operation->uses(begin, bytes);
    }
    return users;
}

bool Runtime::is_device_memory(std::uint64_t begin, std::size_t bytes) const {
    return std::any_of(contexts.begin(), contexts.end(),
                       [&](const Context& context) { return context.memory.touches(begin, bytes); });
}

void Runtime::wake_streams() {
    for (const auto& [handle, stream] : streams) {
        const bool waits = stream->current == nullptr && !stream->queue.empty();
        if (waits || stream->closed || ended) stream->changed.notify_all();
    }
    advance();
}

void Runtime::break_context(Context& context, CUresult result) {
    if (context.broken == code::success) context.broken = result;
    wake_streams();
    host_changed.notify_all();
}

// The last one that held the primary context has let it go: everything in it dies.
void Runtime::destroy(Context& context, std::unique_lock<std::mutex>& waiting) {
    std::vector<std::uint64_t> handles;
    for (const auto& [handle, stream] : streams) {
        if (&stream->context != &context) continue;
        if (!stream->legacy && !stream->closed) {
            problems.push_back("the context of device " + std::to_string(context.device) +
                               " was released with a stream in it");
        }
        stream->drop();
        handles.push_back(handle);
    }
    context.legacy = nullptr;
    wake_streams();
    host_changed.wait(waiting, [&] {
        return std::none_of(handles.begin(), handles.end(),
                            [&](auto handle) { return streams.contains(handle); });
    });
    const auto note = [&](std::size_t count, const char* what) {
        if (count == 0) return;
        problems.push_back("the context of device " + std::to_string(context.device) + " was released with " +
                           std::to_string(count) + " " + what + " in it");
    };
    const auto here = [&](const auto& entry) { return entry.second.context == &context; };
    note(std::erase_if(events, here), "events");
    note(std::erase_if(modules, here), "modules");
    std::erase_if(functions, here);
    note(context.memory.count(), "allocations");
    std::vector<std::uint64_t> registered;
    for (const auto& [begin, registration] : registrations.all()) {
        if (registration.context != &context) continue;
        registered.push_back(begin);
        locked -= registration.bytes;
    }
    for (const std::uint64_t begin : registered) registrations.remove(begin);
    note(registered.size(), "registrations");
    context.memory.clear();
    context.broken = code::success;
}

void Runtime::end() {
    ended.store(true, std::memory_order_relaxed);
    std::unique_lock waiting(mutex);
    for (const auto& [handle, stream] : streams) stream->changed.notify_all();
    host_changed.notify_all();
    // A kernel that is in the middle of the program's memory should not meet its destructors.
    host_changed.wait_for(waiting, std::chrono::seconds(1), [&] { return !anything_runs(); });
}

}  // namespace nsf::stub
