// The slots of one CUDA graph: device memory in which every replay leaves its records at the same addresses.
//
// Contract
//   place(), order() and read() are called under the engine's producer mutex, with the device's context current. The
//   constructor and the destructor enter that context themselves, from any thread, also while a graph is being captured.
//   The order of one replay: order(), the graph's launch, copies out of the slots, read(); all on the same stream. A
//   copy out of a slot that is started later would read what the next replay writes.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <vector>

#include "core/device.hpp"
#include "core/dtype.hpp"
#include "cuda/driver.hpp"
#include "cuda/primary_context.hpp"

namespace nsf::cuda {

// What the slots of all graphs on one device take, and may take.
struct SlotBudget {
    std::size_t limit = 0;
    std::atomic<std::size_t> used{0};
    std::atomic<std::size_t> peak{0};
};

class GraphMemory final : public GraphSlots {
  public:
    // largest_chunk: memory is taken in pieces that double up to this.
    GraphMemory(const Driver& driver, int device, std::shared_ptr<SlotBudget> budget,
                std::size_t largest_chunk);
    ~GraphMemory() override;
    GraphMemory(const GraphMemory&) = delete;
    GraphMemory& operator=(const GraphMemory&) = delete;

    int device() const { return device_; }
    // A slot for so many elements; the next one of this dtype comes right behind it, so that records which are stored one
    // after the other can be copied as one. Throws EngineError where the budget or the device has no room.
    Address place(DType dtype, std::size_t elements);
    // What `stream` is given from here on comes after everything that was on its way at the last read().
    void order(Stream stream);
    // All reading of this replay's slots has been started on `stream`.
    void read(Stream stream);

  private:
    struct Chunk {
        Address memory = 0;
        std::size_t bytes = 0;
        std::size_t used = 0;
    };

    Address allocate(std::size_t bytes);

    const Driver& driver_;
    const int device_;
    const PrimaryContext context_;
    const std::shared_ptr<SlotBudget> budget_;
    const std::size_t largest_chunk_;
    Event read_ = nullptr;
    bool was_read_ = false;
    std::array<Chunk, dtype_count> open_{};
    std::vector<Address> allocated_;
    std::size_t allocated_bytes_ = 0;
};

}  // namespace nsf::cuda
