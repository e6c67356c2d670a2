// What an operation does when its turn has come.
#include <cstring>

#include "runtime.hpp"

namespace nsf::stub {
namespace {

struct IllegalAddress {};

// A device-side address: a live allocation of the context (which is then kept alive) or mapped host memory.
bool reachable(Runtime& state, Context& context, std::uint64_t address, std::size_t bytes,
               Operation& operation) {
    if (auto allocation = context.memory.find(address, bytes)) {
        operation.used.push_back(std::move(allocation));
        return true;
    }
    return state.registrations.mapped(address, bytes, &context);
}

}  // namespace

std::uint64_t Launch::checked(std::uint64_t address, std::size_t bytes) const {
    const Unseen unseen;
    Runtime& state = runtime();
    const std::lock_guard lock(state.mutex);
    for (const Context& candidate : state.contexts) {
        if (&candidate != context) continue;
        if (candidate.memory.find(address, bytes) != nullptr) return address;
        if (state.registrations.mapped(address, bytes, context)) return address;
    }
    throw IllegalAddress();
}

// With the mutex held, just before the execution: the failures that a test planned, and the memory as it is now.
int Stream::prepare(Operation& operation) {
    int planned = 0;
    for (auto plan = state.operation_failures.begin(); plan != state.operation_failures.end();) {
        if (!includes(plan->kinds, operation.kind) || !plan->count()) {
            ++plan;
            continue;
        }
        if (planned == 0) planned = plan->result;
        plan = state.operation_failures.erase(plan);
    }
    if (planned != 0) return planned;

    const auto device_side = [&](std::uint64_t address) {
        return reachable(state, context, address, operation.bytes, operation);
    };
    // Page-locked when the copy was asked for: it must be so still.
    const auto host_side = [&](std::uint64_t address) {
        return !operation.host_is_locked ||
               state.registrations.where(address, operation.bytes, &context) == Registrations::Lies::inside;
    };
    bool good = true;
    switch (operation.kind) {
        case Kind::dtoh:
            good = device_side(operation.from) && host_side(operation.to);
            break;
        case Kind::htod:
            good = device_side(operation.to) && host_side(operation.from);
            break;
        case Kind::dtod:
            good = device_side(operation.to) && device_side(operation.from);
            break;
        case Kind::kernel:
            for (std::size_t i = 0; i < operation.kernel->parameters.size(); ++i) {
                if (!operation.kernel->parameters[i].pointer) continue;
                const auto address = operation.launch.get<std::uint64_t>(i);
                if (address != 0 && !reachable(state, context, address, 1, operation)) good = false;
            }
            break;
        default:
            break;
    }
    return good ? 0 : code::illegal_address;
}

// Without the mutex, and seen by ThreadSanitizer: these are the accesses of the device.
int Stream::execute(Operation& operation) {
    if (includes(Kind::copy, operation.kind)) {
        const void* from = operation.staged.empty() ? reinterpret_cast<const void*>(operation.from)
                                                    : static_cast<const void*>(operation.staged.data());
        std::memcpy(reinterpret_cast<void*>(operation.to), from, operation.bytes);
    } else if (operation.kind == Kind::kernel) {
        try {
            operation.kernel->run(operation.launch);
        } catch (const IllegalAddress&) {
            return code::illegal_address;
        } catch (...) {
            return code::launch_failed;
        }
    }
    return 0;
}

}  // namespace nsf::stub
