#include "cuda/cuda_transfer.hpp"

#include <algorithm>
#include <stdexcept>

#include "core/error.hpp"
#include "cuda/waits.hpp"

namespace nsf::cuda {
namespace {

constexpr std::size_t mebibyte = std::size_t{1} << 20;
constexpr int name_bytes = 256;

std::string version_text(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string device_name(const Driver& driver, int number) {
    int handle = 0;
    driver.check(driver.device_get(&handle, number), "find the device");
    std::array<char, name_bytes> name{};
    driver.check(driver.device_get_name(name.data(), name_bytes - 1, handle), "ask for the device's name");
    return name.data();
}

}  // namespace

DeviceMemory::DeviceMemory(const Driver& driver, std::size_t block_bytes, std::size_t blocks, double share)
    : driver_(driver) {
    std::size_t free = 0;
    std::size_t total = 0;
    driver.check(driver.memory_get_info(&free, &total), "ask for free device memory");
    const auto allowed = static_cast<std::size_t>(static_cast<double>(free) * share);
    blocks_ = std::min(blocks, allowed / block_bytes);
    if (blocks_ == 0) {
        throw EngineError("there is too little free memory on the device for a staging ring: " +
                          std::to_string(free / mebibyte) + " MiB are free, of which the capture may take " +
                          std::to_string(allowed / mebibyte) + " MiB, and a block needs " +
                          std::to_string(block_bytes / mebibyte) +
                          " MiB: raise staging_share, lower block_bytes, or free some memory");
    }
    // What is free may lie in pieces.
    Result result = driver.memory_allocate(&address_, blocks_ * block_bytes);
    while (result == out_of_memory && blocks_ > 1) {
        blocks_ /= 2;
        result = driver.memory_allocate(&address_, blocks_ * block_bytes);
    }
    driver.check(result, "allocate the staging ring");
}

DeviceMemory::~DeviceMemory() { static_cast<void>(driver_.memory_free(address_)); }

CudaTransfer::Device::Device(const Driver& driver, int ordinal, Context its_context, std::size_t block_bytes,
                             std::size_t blocks, double share, KernelMaker& maker)
    : number(ordinal),
      context(its_context),
      name(device_name(driver, ordinal)),
      copies(driver),
      memory(driver, block_bytes, blocks, share),
      staging(driver, static_cast<std::uint32_t>(ordinal), copies, memory.address(), block_bytes,
              memory.blocks()),
      tables(driver, copies, staging),
      kernels(driver, its_context, maker, ordinal),
      source(driver, its_context, kernels, staging, tables) {}

CudaTransfer::Device& CudaTransfer::opened(int number) {
    if (number < 0 || number >= most_devices) {
        throw EngineError("a device with the number " + std::to_string(number) + " cannot be captured from");
    }
    const auto index = static_cast<std::size_t>(number);
    if (devices_[index]) return *devices_[index];
    if (driver_ == nullptr) driver_ = &Driver::get();
    const BesideCaptures beside(*driver_);
    if (!contexts_[index]) contexts_[index] = std::make_unique<PrimaryContext>(*driver_, number);
    const Context context = contexts_[index]->get();
    const CurrentContext current(*driver_, context);
    const std::size_t blocks = std::max<std::size_t>(1, options_.staging_bytes / ring_.block_bytes());
    auto device = std::make_unique<Device>(*driver_, number, context, ring_.block_bytes(), blocks,
                                           options_.staging_share, maker_);
    device->slots->limit = options_.staging_bytes;
    if (!pinned_) {  // last: it takes as much as can be had
        pinned_ = std::make_unique<PinnedRing>(*driver_, ring_);
        pinned_by_ = number;
        pinned_bytes_ = pinned_->bytes();
        if (!pinned_->warning().empty()) warnings_.push_back(pinned_->warning());
    }
    if (device->memory.blocks() < blocks) {
        warnings_.push_back("the staging ring on device " + std::to_string(number) + " has " +
                            std::to_string(device->memory.blocks() * ring_.block_bytes() / mebibyte) +
                            " MiB instead of " + std::to_string(options_.staging_bytes / mebibyte) +
                            " MiB: more would be over the allowed share of the device's free memory");
    }
    devices_[index] = std::move(device);
    return *devices_[index];
}

void CudaTransfer::prepare(int number, DType from, DType to, CastRules rules) {
    opened(number).source.prepare(from, to, rules);
}

RecordSource& CudaTransfer::source(const TensorView& view, const Selection* selection, DType target,
                                   CastRules rules) {
    Device& device = opened(view.device);
    device.source.begin(view, selection, target, rules);
    return device.source;
}

bool CudaTransfer::in_graph(const TensorView& view) {
    return opened(view.device).source.in_graph(view.stream);
}

std::unique_ptr<GraphSlots> CudaTransfer::make_slots(int device) {
    const std::shared_ptr<SlotBudget>& budget = opened(device).slots;
    return std::make_unique<GraphMemory>(*driver_, device, budget, ring_.block_bytes());
}

TensorView CudaTransfer::put_into_slot(GraphSlots& slots, const TensorView& view, DType target,
                                       CastRules rules) {
    auto& memory = static_cast<GraphMemory&>(slots);
    if (memory.device() != view.device) {
        throw std::invalid_argument("the CUDA graph that is being captured works on several devices");
    }
    Device& device = opened(view.device);
    TensorView slot = view;
    slot.dtype = target;
    std::int64_t stride = 1;
    for (std::size_t axis = slot.shape.size(); axis-- > 0;) {
        slot.strides[axis] = stride;
        stride *= slot.shape[axis];
    }
    const CurrentContext current(*driver_, device.context);
    const Address address = memory.place(target, slot.elements());
    device.source.put(view, target, rules, address);
    slot.data = reinterpret_cast<const std::byte*>(static_cast<std::uintptr_t>(address));
    slot.stream = nullptr;
    slot.stays = true;
    return slot;
}

void CudaTransfer::before_replay(GraphSlots& slots, void* stream) {
    auto& memory = static_cast<GraphMemory&>(slots);
    Device& device = opened(memory.device());
    const CurrentContext current(*driver_, device.context);
    device.staging.start_fills();  // where after_replay() has failed
    memory.order(stream);
}

void CudaTransfer::after_replay(GraphSlots& slots, void* stream) {
    auto& memory = static_cast<GraphMemory&>(slots);
    Device& device = opened(memory.device());
    const CurrentContext current(*driver_, device.context);
    device.staging.start_fills();
    memory.read(stream);
}

void CudaTransfer::settle(Block& block) {
    for (const auto& device : devices_) {
        if (!device || !(device->source.keeps_back(block) || device->staging.holds(block))) continue;
        if (device->source.keeps_back(block)) device->source.launch_deferred();
        const CurrentContext current(*driver_, device->context);
        device->staging.copy(block);
    }
}

void CudaTransfer::flush() {
    for (const auto& device : devices_) {
        if (!device) continue;
        const CurrentContext current(*driver_, device->context);
        device->staging.copy_all();
    }
}

void CudaTransfer::wait(const PendingCopy& copy) {
    if (!keeps(Wait::writer_for_copy)) return;
    Device& device = *devices_[copy.device];
    const CurrentContext current(*driver_, device.context);
    device.copies.wait(copy.ticket);
}

void CudaTransfer::close() noexcept {
    if (!pinned_) {
        for (auto& context : contexts_) context.reset();
        return;
    }
    const BesideCaptures beside(*driver_);
    // The ring is unlocked in the context in which it was locked, after every device has come to rest.
    for (auto& device : devices_) {
        if (!device) continue;
        try {
            const CurrentContext current(*driver_, device->context);
            if (keeps(Wait::close_for_compute)) device->staging.follow_writers();
        } catch (const EngineError&) {
            // A device that is lost writes nothing more.
        }
        try {
            const CurrentContext current(*driver_, device->context);
            if (keeps(Wait::close_for_copy)) device->copies.drain();
            closed_stats_.push_back(stats_of(*device));
            device.reset();
        } catch (const EngineError&) {
            device
                .reset();  // without a context: what it calls fails, and the driver has taken everything back
        }
    }
    try {
        const CurrentContext current(*driver_, contexts_[static_cast<std::size_t>(pinned_by_)]->get());
        pinned_.reset();
    } catch (const EngineError&) {
        pinned_.reset();
    }
    for (auto& context : contexts_) context.reset();
}

DeviceStats CudaTransfer::stats_of(const Device& device) const {
    DeviceStats stats;
    stats.device = device.number;
    stats.name = device.name;
    stats.driver = version_text(driver_->version);
    stats.staging_bytes = device.staging.block_count() * device.staging.block_bytes();
    stats.peak_staging_bytes = device.staging.peak_blocks() * device.staging.block_bytes();
    stats.peak_slot_bytes = device.slots->peak.load(std::memory_order_relaxed);
    stats.dtoh_bytes = device.copies.bytes();
    stats.dtoh_copies = device.copies.copies();
    stats.dtoh_seconds = device.copies.seconds();
    stats.host_waits = device.source.host_waits() + device.copies.host_waits() + device.tables.host_waits();
    stats.device_waits = device.copies.device_waits();
    return stats;
}

std::vector<DeviceStats> CudaTransfer::stats() const {
    std::vector<DeviceStats> stats = closed_stats_;
    for (const auto& device : devices_) {
        if (device) stats.push_back(stats_of(*device));
    }
    return stats;
}

}  // namespace nsf::cuda
