// CUDA graphs: what is started on a stream under capture, kept and done again.
#include <cstddef>
#include <utility>

#include "runtime.hpp"

namespace nsf::stub {

std::unique_ptr<Operation> Operation::copy() const {
    auto made = std::make_unique<Operation>();
    made->kind = kind;
    made->to = to;
    made->from = from;
    made->bytes = bytes;
    made->staged = staged;
    made->host_is_locked = host_is_locked;
    made->kernel = kernel;
    made->launch = launch;
    made->values = values;
    for (void* place : places) {
        const std::ptrdiff_t offset = static_cast<const std::byte*>(place) - values.data();
        made->places.push_back(made->values.data() + offset);
    }
    made->launch.parameters = made->places.data();
    return made;
}

std::size_t take_graph() {
    const Unseen unseen;
    Runtime& state = runtime();
    const std::lock_guard lock(state.mutex);
    state.graphs.push_back({std::exchange(state.captured, {}), nullptr});
    return state.graphs.size() - 1;
}

int launch_graph(std::size_t graph, void* handle) {
    return call("cuGraphLaunch", Needs::context, [&](Caller& caller) {
        Stream* stream = caller.stream(static_cast<CUstream>(handle));
        if (stream == nullptr || graph >= caller.state.graphs.size()) return code::invalid_handle;
        Graph& launched = caller.state.graphs[graph];
        for (const auto& operation : launched.operations) {
            // Captured events order what one stream does in its order anyway.
            if (includes(Kind::event, operation->kind)) continue;
            auto copy = operation->copy();
            if (launched.last != nullptr) copy->after.push_back(launched.last);
            launched.last = caller.enqueue(*stream, std::move(copy));
        }
        return code::success;
    });
}

}  // namespace nsf::stub
