// What the engine asks of memory that the host cannot read. csrc/cuda answers; core knows no device.
//
// Contract
//   A DeviceTransfer belongs to one engine. wait() is called by the checking thread, at any time, the counters by anyone,
//   and everything else under the engine's producer mutex.
//   Bytes on their way from a device reach a block of the ring some time after the call that sent them. Until
//   settle(block) they may not even be under way; after it, block.pending names every copy that must be waited
//   for before the block is read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/block_ring.hpp"
#include "core/cast.hpp"
#include "core/record_source.hpp"
#include "core/tensor_view.hpp"

namespace nsf {

// The counters of one device, as the manifest has them.
struct DeviceStats {
    int device = 0;
    std::string name;
    std::string driver;
    std::uint64_t staging_bytes = 0;
    std::uint64_t peak_staging_bytes = 0;
    std::uint64_t peak_slot_bytes = 0;  // of CUDA graphs
    std::uint64_t dtoh_bytes = 0;
    std::uint64_t dtoh_copies = 0;
    double dtoh_seconds = 0;  // that the copy engine was at work, from timing events on the copy stream
    std::uint64_t host_waits = 0;
    std::uint64_t device_waits = 0;  // times that a compute stream was made to wait for the copy stream
};

// Memory of one device that a CUDA graph writes captured tensors into, at every replay at the same addresses. It may
// outlive the engine, and must live as long as the graph may be replayed.
class GraphSlots {
  public:
    virtual ~GraphSlots() = default;
};

class DeviceTransfer {
  public:
    virtual ~DeviceTransfer() = default;

    // Makes a device ready: nothing is allocated for it later. Throws EngineError with the reason.
    virtual void open(int device) = 0;
    // Loads the kernel for contiguous tensors of this kind, so that the first tap does not have to.
    virtual void prepare(int device, DType from, DType to, CastRules rules) = 0;

    // The record of a tensor on a device (opened by this call where it is not open). Lives until the next call.
    // Throws std::invalid_argument, or EngineError where the device says no; nothing has been started then.
    virtual RecordSource& source(const TensorView& view, const Selection* selection, DType target,
                                 CastRules rules) = 0;

    // Whether what is started on the tensor's stream now goes into a CUDA graph, and is not done yet.
    virtual bool in_graph(const TensorView& view) = 0;
    virtual std::unique_ptr<GraphSlots> make_slots(int device) = 0;
    // Makes the graph that is being captured on the tensor's stream write the tensor as `target` into a slot of its own,
    // and returns what stands there after a replay. Throws as source() does.
    virtual TensorView put_into_slot(GraphSlots& slots, const TensorView& view, DType target,
                                     CastRules rules) = 0;
    // The graph is about to be replayed on this stream: it must not write the slots before they have been read.
    virtual void before_replay(GraphSlots& slots, void* stream) = 0;
    // What has been given to source() of the slots shall be on its way when this returns.
    virtual void after_replay(GraphSlots& slots, void* stream) = 0;

    // Starts every copy into this block that has not been started; the block is about to go to the writer.
    virtual void settle(Block& block) = 0;
    // Starts every copy that has not been started: one batch a device.
    virtual void flush() = 0;
    // Returns once the copy has arrived; throws EngineError where the device reports an error.
    virtual void wait(const PendingCopy& copy) = 0;

    // Waits until no copy is under way and gives everything back. Does not throw; idempotent.
    virtual void close() noexcept = 0;

    virtual std::vector<DeviceStats> stats() const = 0;
    // Bytes of the ring that are page-locked; 0 before the first open().
    virtual std::uint64_t pinned_bytes() const = 0;
    // Lines for the user, such as a ring that could be locked only in part.
    virtual std::vector<std::string> warnings() const = 0;
};

}  // namespace nsf
