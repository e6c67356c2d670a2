// What of the engine is for tensors on devices alone.
#include <stdexcept>

#include "core/engine.hpp"

namespace nsf {

void Engine::refuse_captured() {
    throw std::invalid_argument(
        "its stream is being captured into a CUDA graph by other means than torch.cuda.CUDAGraph, and "
        "replays "
        "would run past the capture; capture the graph with torch, or run without it");
}

// Under the producer mutex.
DeviceTransfer& Engine::usable_transfer() {
    check_usable();
    if (!transfer_) throw EngineError("this engine takes the host's tensors only");
    return *transfer_;
}

void Engine::refuse_graph(const TensorView& view) {
    if (in_graph(view)) refuse_captured();
}

bool Engine::in_graph(const TensorView& view) {
    if (view.device == TensorView::host) return false;
    check_process();
    const ProducerLock lock(*this);
    return usable_transfer().in_graph(view);
}

std::unique_ptr<GraphSlots> Engine::make_slots(int device) {
    check_process();
    const ProducerLock lock(*this);
    return usable_transfer().make_slots(device);
}

TensorView Engine::put_into_slot(GraphSlots& slots, const TensorView& view, DType target) {
    check_process();
    const ProducerLock lock(*this);
    return usable_transfer().put_into_slot(slots, view, target, options_.cast_rules);
}

void Engine::before_replay(GraphSlots& slots, void* stream) {
    check_process();
    const ProducerLock lock(*this);
    usable_transfer().before_replay(slots, stream);
}

void Engine::open_device(int device, const std::vector<std::pair<DType, DType>>& casts) {
    check_process();
    const ProducerLock lock(*this);
    DeviceTransfer& transfer = usable_transfer();
    transfer.open(device);
    for (const auto& [from, to] : casts) {
        try {
            transfer.prepare(device, from, to, options_.cast_rules);
        } catch (const EngineError&) {
            // Perhaps no tensor needs it; the tap of one that does says the same.
        }
    }
}

std::vector<DeviceStats> Engine::device_stats() const {
    check_process();
    const ProducerLock lock(*this);
    return transfer_ ? transfer_->stats() : std::vector<DeviceStats>();
}

std::vector<std::string> Engine::warnings() const {
    check_process();
    const ProducerLock lock(*this);
    return transfer_ ? transfer_->warnings() : std::vector<std::string>();
}

}  // namespace nsf
