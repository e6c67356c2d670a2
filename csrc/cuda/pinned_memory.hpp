// Page-locked host memory: what a device copies to, or reads from, without the host's help.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/block_ring.hpp"
#include "cuda/driver.hpp"

namespace nsf::cuda {

// Locks the host ring where it stands, as much of it as can be locked, and limits the ring to that. A context
// must be current, here and in the destructor; the lock holds for all devices.
class PinnedRing {
  public:
    // Throws EngineError where not even the blocks in use, or one, can be locked.
    PinnedRing(const Driver& driver, BlockRing& ring);
    ~PinnedRing();
    PinnedRing(const PinnedRing&) = delete;
    PinnedRing& operator=(const PinnedRing&) = delete;

    std::size_t bytes() const { return bytes_; }
    // What the user should know; "" where all of the ring could be locked.
    const std::string& warning() const { return warning_; }

  private:
    const Driver& driver_;
    std::byte* const memory_;
    std::size_t bytes_ = 0;
    std::string warning_;
};

// A small piece of locked memory that kernels of one device read directly.
class PinnedTable {
  public:
    PinnedTable(const Driver& driver, std::size_t bytes);
    ~PinnedTable();
    PinnedTable(const PinnedTable&) = delete;
    PinnedTable& operator=(const PinnedTable&) = delete;

    std::byte* data() const { return memory_; }
    Address address() const { return address_; }
    std::size_t bytes() const { return bytes_; }

  private:
    const Driver& driver_;
    std::byte* memory_ = nullptr;
    std::size_t bytes_;
    Address address_ = 0;
};

}  // namespace nsf::cuda
