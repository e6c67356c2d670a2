// Tables of element offsets for kernels that gather chosen positions: page-locked memory that the kernel reads
// where it stands, since a copy of its own for each would cost more than the reading.
//
// Contract: producer only. A table lives until the batch that was next when it was last read from has arrived:
// every kernel that reads it comes before that batch. Full: the producer waits for the oldest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "cuda/copy_stream.hpp"
#include "cuda/pinned_memory.hpp"
#include "cuda/staging_ring.hpp"

namespace nsf::cuda {

class PositionTables {
  public:
    static constexpr std::size_t capacity = (std::size_t{1} << 20) / sizeof(std::int64_t);  // entries

    PositionTables(const Driver& driver, CopyStream& copies, StagingRing& staging);

    // Where kernels find these offsets. Throws std::invalid_argument for more than `capacity` of them.
    Address put(const std::vector<std::int64_t>& offsets);
    // A kernel that reads the table that put() gave last is about to be started: the pieces of one record may
    // leave in several batches.
    void read_now();

    std::uint64_t host_waits() const { return host_waits_; }

  private:
    struct Table {
        std::size_t begin = 0;  // entry
        std::size_t count = 0;
        std::uint64_t ticket = 0;
    };

    std::int64_t* entries() const { return reinterpret_cast<std::int64_t*>(memory_.data()); }
    Address address(const Table& table) const {
        return memory_.address() + table.begin * sizeof(std::int64_t);
    }
    bool overlaps(const Table& table, std::size_t begin, std::size_t count) const;

    PinnedTable memory_;
    CopyStream& copies_;
    StagingRing& staging_;
    std::deque<Table> live_;    // the oldest in front
    Table* current_ = nullptr;  // in live_, which moves no element: what put() gave last
    std::size_t next_ = 0;      // entry after the newest table
    std::uint64_t host_waits_ = 0;
};

}  // namespace nsf::cuda
