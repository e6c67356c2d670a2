// The CUDA side of a capture: for each device a copy stream, a staging ring and kernels; for all of them the
// page-locked host ring.
//
// Contract: see DeviceTransfer. Devices are opened once and stay until close(); the checking thread reaches one
// only through a block that was submitted after it had been opened.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/device.hpp"
#include "cuda/copy_stream.hpp"
#include "cuda/device_source.hpp"
#include "cuda/driver.hpp"
#include "cuda/graph_memory.hpp"
#include "cuda/kernels.hpp"
#include "cuda/pinned_memory.hpp"
#include "cuda/position_tables.hpp"
#include "cuda/primary_context.hpp"
#include "cuda/staging_ring.hpp"

namespace nsf::cuda {

struct CudaOptions {
    std::size_t staging_bytes = std::size_t{256} << 20;  // a device, at most; so too the slots of CUDA graphs
    double staging_share = 0.1;                          // of the device's free memory, at most
};

// A piece of a device's memory.
class DeviceMemory {
  public:
    // As many blocks as fit, at most `blocks` and at most `share` of what is free; at least one. Throws
    // EngineError where there is no room for that.
    DeviceMemory(const Driver& driver, std::size_t block_bytes, std::size_t blocks, double share);
    ~DeviceMemory();
    DeviceMemory(const DeviceMemory&) = delete;
    DeviceMemory& operator=(const DeviceMemory&) = delete;

    Address address() const { return address_; }
    std::size_t blocks() const { return blocks_; }

  private:
    const Driver& driver_;
    Address address_ = 0;
    std::size_t blocks_ = 0;
};

class CudaTransfer final : public DeviceTransfer {
  public:
    // The ring and the maker must outlive it.
    CudaTransfer(BlockRing& ring, CudaOptions options, KernelMaker& maker)
        : ring_(ring), options_(options), maker_(maker) {}
    ~CudaTransfer() override { close(); }

    void open(int device) override { static_cast<void>(opened(device)); }
    void prepare(int device, DType from, DType to, CastRules rules) override;
    RecordSource& source(const TensorView& view, const Selection* selection, DType target,
                         CastRules rules) override;
    bool in_graph(const TensorView& view) override;
    std::unique_ptr<GraphSlots> make_slots(int device) override;
    TensorView put_into_slot(GraphSlots& slots, const TensorView& view, DType target,
                             CastRules rules) override;
    void before_replay(GraphSlots& slots, void* stream) override;
    void after_replay(GraphSlots& slots, void* stream) override;
    void settle(Block& block) override;
    void flush() override;
    void wait(const PendingCopy& copy) override;
    void close() noexcept override;

    std::vector<DeviceStats> stats() const override;
    std::uint64_t pinned_bytes() const override { return pinned_bytes_; }
    std::vector<std::string> warnings() const override { return warnings_; }

  private:
    static constexpr int most_devices = 64;

    // Everything that is taken from one device, in the order in which it is taken; its context is current in
    // the constructor and the destructor.
    struct Device {
        Device(const Driver& driver, int number, Context context, std::size_t block_bytes, std::size_t blocks,
               double share, KernelMaker& maker);

        const int number;
        const Context context;
        std::string name;
        CopyStream copies;
        DeviceMemory memory;
        StagingRing staging;
        PositionTables tables;
        Kernels kernels;
        DeviceSource source;
        std::shared_ptr<SlotBudget> slots = std::make_shared<SlotBudget>();
    };

    Device& opened(int device);
    DeviceStats stats_of(const Device& device) const;

    BlockRing& ring_;
    const CudaOptions options_;
    KernelMaker& maker_;
    const Driver* driver_ = nullptr;
    std::array<std::unique_ptr<PrimaryContext>, most_devices> contexts_;
    std::array<std::unique_ptr<Device>, most_devices> devices_;
    std::unique_ptr<PinnedRing> pinned_;
    int pinned_by_ = -1;  // the device in whose context the ring was locked
    std::uint64_t pinned_bytes_ = 0;
    std::vector<std::string> warnings_;
    std::vector<DeviceStats> closed_stats_;
};

}  // namespace nsf::cuda
