#include "cuda/graph_memory.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "core/error.hpp"
#include "cuda/waits.hpp"

namespace nsf::cuda {
namespace {

constexpr std::size_t first_chunk = std::size_t{64} << 10;
constexpr std::size_t mebibyte = std::size_t{1} << 20;

}  // namespace

GraphMemory::GraphMemory(const Driver& driver, int device, std::shared_ptr<SlotBudget> budget,
                         std::size_t largest_chunk)
    : driver_(driver),
      device_(device),
      context_(driver, device),
      budget_(std::move(budget)),
      largest_chunk_(largest_chunk) {
    const CurrentContext current(driver_, context_.get());
    const BesideCaptures beside(driver_);
    driver_.check(driver_.event_create(&read_, event_disable_timing), "create an event");
}

// Errors are of no use to anybody here: the driver may be shutting down with the process. A replay may still be under way:
// cuMemFree waits for what the device has been given.
GraphMemory::~GraphMemory() {
    budget_->used.fetch_sub(allocated_bytes_, std::memory_order_relaxed);
    try {
        const CurrentContext current(driver_, context_.get());
        const BesideCaptures beside(driver_);
        static_cast<void>(driver_.event_destroy(read_));
        for (const Address memory : allocated_) static_cast<void>(driver_.memory_free(memory));
    } catch (const EngineError&) {
        // The context is gone, and the memory with it.
    }
}

Address GraphMemory::allocate(std::size_t bytes) {
    const std::size_t before = budget_->used.load(std::memory_order_relaxed);
    if (bytes > budget_->limit - std::min(budget_->limit, before)) {
        throw EngineError("the captured tensors of CUDA graphs would take " +
                          std::to_string((before + bytes + mebibyte - 1) / mebibyte) + " MiB on device " +
                          std::to_string(device_) + ", and staging_bytes allows " +
                          std::to_string(budget_->limit / mebibyte) + " MiB: raise it, or capture less");
    }
    const BesideCaptures beside(driver_);
    allocated_.reserve(allocated_.size() + 1);
    Address memory = 0;
    driver_.check(driver_.memory_allocate(&memory, bytes), "allocate slots for a CUDA graph");
    allocated_.push_back(memory);
    allocated_bytes_ += bytes;
    // relaxed: only counts, and under the producer mutex but for the destructor's subtraction.
    const std::size_t now = budget_->used.fetch_add(bytes, std::memory_order_relaxed) + bytes;
    if (now > budget_->peak.load(std::memory_order_relaxed))
        budget_->peak.store(now, std::memory_order_relaxed);
    return memory;
}

Address GraphMemory::place(DType dtype, std::size_t elements) {
    Chunk& chunk = open_[static_cast<std::size_t>(dtype)];
    const std::size_t bytes = elements * item_size(dtype);
    if (bytes > chunk.bytes - chunk.used) {
        const std::size_t doubled =
            std::clamp(chunk.bytes * 2, std::min(first_chunk, largest_chunk_), largest_chunk_);
        const std::size_t wanted = std::max(bytes, doubled);
        chunk = {allocate(wanted), wanted, 0};
    }
    const Address slot = chunk.memory + chunk.used;
    chunk.used += bytes;
    return slot;
}

void GraphMemory::order(Stream stream) {
    if (!was_read_ || !keeps(Wait::replay_for_slots)) return;
    driver_.check(driver_.stream_wait_event(stream, read_, 0), "make a CUDA graph wait for its slots");
}

void GraphMemory::read(Stream stream) {
    driver_.check(driver_.event_record(read_, stream), "record an event behind a CUDA graph");
    was_read_ = true;
}

}  // namespace nsf::cuda
