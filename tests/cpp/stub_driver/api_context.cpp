// Initialisation, devices and contexts.
#include <pthread.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "runtime.hpp"

namespace nsf::stub {
namespace {

// Once a process, and as late as the real driver: destructors of what was made before cuInit run after the end.
void watch_process() {
    static bool watched = false;
    if (watched) return;
    watched = true;
    std::atexit([] {
        if (runtime().forked) return;
        const Unseen unseen;
        runtime().end();
    });
    pthread_atfork(nullptr, nullptr, [] { runtime().forked = true; });
}

bool valid(const Runtime& state, CUdevice device) { return device >= 0 && device < state.device_count; }

}  // namespace

extern "C" {

CUresult cuInit(unsigned flags) {
    return call("cuInit", Needs::nothing, [&](Caller& caller) {
        if (flags != 0) return code::invalid_value;
        if (caller.state.device_count == 0) return code::no_device;
        caller.state.initialised = true;
        watch_process();
        return code::success;
    });
}

CUresult cuDriverGetVersion(int* version) {
    return call("cuDriverGetVersion", Needs::nothing, [&](Caller& caller) {
        if (version == nullptr) return code::invalid_value;
        *version = caller.state.driver_version;
        return code::success;
    });
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    return call("cuDeviceGet", Needs::driver, [&](Caller& caller) {
        if (device == nullptr) return code::invalid_value;
        if (!valid(caller.state, ordinal)) return code::invalid_device;
        *device = ordinal;
        return code::success;
    });
}

CUresult cuDeviceGetCount(int* count) {
    return call("cuDeviceGetCount", Needs::driver, [&](Caller& caller) {
        if (count == nullptr) return code::invalid_value;
        *count = caller.state.device_count;
        return code::success;
    });
}

CUresult cuDeviceGetName(char* name, int size, CUdevice device) {
    return call("cuDeviceGetName", Needs::driver, [&](Caller& caller) {
        if (name == nullptr || size <= 0) return code::invalid_value;
        if (!valid(caller.state, device)) return code::invalid_device;
        const std::string full = "Stub GPU " + std::to_string(device);
        const std::size_t copied = full.copy(name, static_cast<std::size_t>(size) - 1);
        name[copied] = '\0';
        return code::success;
    });
}

CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
    return call("cuDeviceGetAttribute", Needs::driver, [&](Caller& caller) {
        if (value == nullptr || attribute <= 0) return code::invalid_value;
        if (!valid(caller.state, device)) return code::invalid_device;
        const auto found = caller.state.attributes.find(attribute);
        *value = found == caller.state.attributes.end() ? 0 : found->second;
        return code::success;
    });
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    return call("cuDevicePrimaryCtxRetain", Needs::driver, [&](Caller& caller) {
        if (context == nullptr) return code::invalid_value;
        if (!valid(caller.state, device)) return code::invalid_device;
        Context& primary = caller.state.contexts[static_cast<std::size_t>(device)];
        ++primary.references;
        *context = handle_of(primary);
        return code::success;
    });
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    return call("cuDevicePrimaryCtxRelease_v2", Needs::driver, [&](Caller& caller) {
        if (!valid(caller.state, device)) return code::invalid_device;
        Context& primary = caller.state.contexts[static_cast<std::size_t>(device)];
        if (primary.references == 0) return code::invalid_context;
        if (--primary.references == 0) caller.state.destroy(primary, caller.lock);
        return code::success;
    });
}

CUresult cuCtxGetCurrent(CUcontext* context) {
    return call("cuCtxGetCurrent", Needs::driver, [&](Caller&) {
        if (context == nullptr) return code::invalid_value;
        *context = context_stack().empty() ? nullptr : handle_of(*context_stack().back());
        return code::success;
    });
}

CUresult cuCtxSetCurrent(CUcontext context) {
    return call("cuCtxSetCurrent", Needs::driver, [&](Caller& caller) {
        Context* set = context == nullptr ? nullptr : caller.state.context_of(context);
        if (context != nullptr && (set == nullptr || set->references == 0)) return code::invalid_context;
        // Takes the place of the one on top.
        if (!context_stack().empty()) {
            context_stack().pop_back();
            --caller.state.contexts_on_stacks;
        }
        if (set == nullptr) return code::success;
        context_stack().push_back(set);
        ++caller.state.contexts_on_stacks;
        return code::success;
    });
}

CUresult cuCtxPushCurrent_v2(CUcontext context) {
    return call("cuCtxPushCurrent_v2", Needs::driver, [&](Caller& caller) {
        Context* pushed = caller.state.context_of(context);
        if (pushed == nullptr || pushed->references == 0) return code::invalid_context;
        context_stack().push_back(pushed);
        ++caller.state.contexts_on_stacks;
        return code::success;
    });
}

CUresult cuCtxPopCurrent_v2(CUcontext* context) {
    return call("cuCtxPopCurrent_v2", Needs::driver, [&](Caller& caller) {
        if (context_stack().empty()) return code::invalid_context;
        if (context != nullptr) *context = handle_of(*context_stack().back());
        context_stack().pop_back();
        --caller.state.contexts_on_stacks;
        return code::success;
    });
}

}  // extern "C"

}  // namespace nsf::stub
