// Device memory, page-locked host memory, copies.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "runtime.hpp"

namespace nsf::stub {
namespace {

bool reachable(const Caller& caller, std::uint64_t address, std::size_t bytes) {
    return caller.context->memory.find(address, bytes) != nullptr ||
           caller.state.registrations.mapped(address, bytes, caller.context);
}

bool is_mapped_in_process(void* begin, std::size_t bytes) {
    const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    const std::uint64_t first = number(begin) / page * page;
    return ::msync(reinterpret_cast<void*>(first), number(begin) + bytes - first, MS_ASYNC) == 0;
}

// A copy with one end in host memory. `host` is that end.
CUresult copy_with_host(Caller& caller, Kind kind, std::uint64_t to, std::uint64_t from, std::size_t bytes,
                        CUstream handle) {
    Stream* stream = caller.stream(handle);
    if (stream == nullptr) return code::invalid_handle;
    if (bytes == 0) return code::success;
    const bool to_host = kind == Kind::dtoh;
    const std::uint64_t host = to_host ? to : from;
    if (host == 0 || !reachable(caller, to_host ? from : to, bytes)) return code::invalid_value;
    if (caller.state.is_device_memory(host, bytes)) return code::invalid_value;
    const auto lies = caller.state.registrations.where(host, bytes, caller.context);
    if (lies == Registrations::Lies::across) return code::invalid_value;

    auto operation = std::make_unique<Operation>();
    operation->kind = kind;
    operation->to = to;
    operation->from = from;
    operation->bytes = bytes;
    operation->host_is_locked = lies == Registrations::Lies::inside;
    if (operation->host_is_locked) {
        caller.enqueue(*stream, std::move(operation));
        return code::success;
    }
    // Pageable memory: the driver returns when it has read the source, or when the bytes have arrived.
    ++(to_host ? caller.state.counters.dtoh_unpinned : caller.state.counters.htod_unpinned);
    if (!to_host) {
        operation->staged.resize(bytes);
        const Seen seen;
        std::memcpy(operation->staged.data(), reinterpret_cast<const void*>(from), bytes);
    }
    const auto completion = caller.enqueue(*stream, std::move(operation));
    if (!to_host) return code::success;
    const CUresult result = caller.wait(completion);
    return result == code::success ? caller.context->broken : result;
}

}  // namespace

extern "C" {

CUresult cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
    return call("cuMemGetInfo_v2", Needs::context, [&](Caller& caller) {
        if (free == nullptr || total == nullptr) return code::invalid_value;
        *free =
            caller.state.free_memory - std::min(caller.state.free_memory, caller.context->memory.allocated());
        *total = caller.state.total_memory;
        return code::success;
    });
}

CUresult cuMemAlloc_v2(CUdeviceptr* address, std::size_t bytes) {
    return call("cuMemAlloc_v2", Needs::context, [&](Caller& caller) {
        if (would_break_a_capture(caller)) return code::capture_unsupported;
        if (address == nullptr || bytes == 0) return code::invalid_value;
        const std::size_t used = caller.context->memory.allocated();
        if (used > caller.state.free_memory || bytes > caller.state.free_memory - used) {
            return code::out_of_memory;
        }
        auto made = std::make_shared<Allocation>(bytes);
        caller.lock.unlock();  // streams go on while a large one is filled
        {
            const Seen seen;
            made->fill(poison);
        }
        caller.lock.lock();
        *address = made->address();
        caller.context->memory.add(std::move(made));
        return code::success;
    });
}

CUresult cuMemFree_v2(CUdeviceptr address) {
    return call("cuMemFree_v2", Needs::context_to_clean_up, [&](Caller& caller) {
        if (would_break_a_capture(caller)) return code::capture_unsupported;
        const std::shared_ptr<Allocation> freed = caller.context->memory.take(address);
        if (freed == nullptr) return code::invalid_value;
        // Drivers are known to wait here, but nothing promises it.
        if (const std::size_t users = caller.state.users_of(address, freed->bytes()); users > 0) {
            caller.state.problems.push_back("cuMemFree of " + std::to_string(freed->bytes()) +
                                            " bytes that " + std::to_string(users) +
                                            " unfinished operations use");
        }
        if (!freed->guards_are_whole()) {
            caller.state.problems.push_back("the guard zone of an allocation of " +
                                            std::to_string(freed->bytes()) + " bytes was written to");
        }
        // In a lost context no synchronisation orders what ran last before this.
        if (caller.context->broken == code::success) {
            const Seen seen;
            freed->fill(freed_poison);
        }
        caller.context->memory.keep_for_a_while(freed);
        return code::success;
    });
}

CUresult cuMemHostRegister_v2(void* begin, std::size_t bytes, unsigned flags) {
    return call("cuMemHostRegister_v2", Needs::context, [&](Caller& caller) {
        if (would_break_a_capture(caller)) return code::capture_unsupported;
        constexpr unsigned known_flags = 15;
        if (begin == nullptr || bytes == 0 || flags > known_flags) return code::invalid_value;
        Runtime& state = caller.state;
        if (state.registrations.overlaps(number(begin), bytes)) return code::host_memory_already_registered;
        if (!is_mapped_in_process(begin, bytes) || state.is_device_memory(number(begin), bytes)) {
            return code::invalid_value;
        }
        if (state.locked > state.lockable || bytes > state.lockable - state.locked)
            return code::out_of_memory;
        state.locked += bytes;
        state.registrations.add(number(begin), {bytes, flags, caller.context});
        return code::success;
    });
}

CUresult cuMemHostUnregister(void* begin) {
    return call("cuMemHostUnregister", Needs::context_to_clean_up, [&](Caller& caller) {
        if (would_break_a_capture(caller)) return code::capture_unsupported;
        const Registration* registration = caller.state.registrations.at(number(begin));
        if (registration == nullptr) return code::host_memory_not_registered;
        const bool portable = (registration->flags & register_portable) != 0;
        if (!portable && registration->context != caller.context) return code::host_memory_not_registered;
        if (const std::size_t users = caller.state.users_of(number(begin), registration->bytes); users > 0) {
            caller.state.problems.push_back("cuMemHostUnregister of memory that " + std::to_string(users) +
                                            " unfinished operations use");
        }
        caller.state.locked -= registration->bytes;
        caller.state.registrations.remove(number(begin));
        return code::success;
    });
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* address, void* host, unsigned flags) {
    return call("cuMemHostGetDevicePointer_v2", Needs::context, [&](Caller& caller) {
        if (address == nullptr || flags != 0) return code::invalid_value;
        if (!caller.state.registrations.mapped(number(host), 1, caller.context)) return code::invalid_value;
        *address = number(host);
        return code::success;
    });
}

CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
    return call("cuMemcpyDtoHAsync_v2", Needs::context, [&](Caller& caller) {
        return copy_with_host(caller, Kind::dtoh, number(to), from, bytes, stream);
    });
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, std::size_t bytes, CUstream stream) {
    return call("cuMemcpyHtoDAsync_v2", Needs::context, [&](Caller& caller) {
        return copy_with_host(caller, Kind::htod, to, number(from), bytes, stream);
    });
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream handle) {
    return call("cuMemcpyDtoDAsync_v2", Needs::context, [&](Caller& caller) {
        Stream* stream = caller.stream(handle);
        if (stream == nullptr) return code::invalid_handle;
        if (bytes == 0) return code::success;
        if (!reachable(caller, to, bytes) || !reachable(caller, from, bytes)) return code::invalid_value;
        // The driver lets the bytes come out in any way; the stub does not let it happen.
        if (to < from + bytes && from < to + bytes) return code::invalid_value;
        auto operation = std::make_unique<Operation>();
        operation->kind = Kind::dtod;
        operation->to = to;
        operation->from = from;
        operation->bytes = bytes;
        caller.enqueue(*stream, std::move(operation));
        return code::success;
    });
}

}  // extern "C"

}  // namespace nsf::stub
