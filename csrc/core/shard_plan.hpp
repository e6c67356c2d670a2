// Where in which shard the next record goes. Decided by the producer, before a byte is copied.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "core/block_ring.hpp"
#include "core/safetensors_shard.hpp"

namespace nsf {

struct Placement {
    std::uint32_t shard = 0;
    std::size_t reserve = 0;  // the shard's data start
    std::uint64_t offset = 0;
    bool opens_shard = false;
};

// One for each lane (dtype). Not thread-safe: used under the producer mutex.
class ShardPlan {
  public:
    static constexpr std::size_t first_reserve = 64 << 10;
    static constexpr std::size_t largest_reserve = 16 << 20;

    explicit ShardPlan(std::uint64_t shard_bytes, std::uint32_t first_shard = 0)
        : shard_bytes_(shard_bytes), shard_(first_shard) {}

    // A plan without shards, for a sink that has no files: offsets only count up.
    static ShardPlan unbounded() {
        ShardPlan plan(std::numeric_limits<std::uint64_t>::max());
        plan.has_header_ = false;
        return plan;
    }

    bool would_open_shard(std::uint64_t bytes, std::size_t entry_bound) const {
        if (!open_) return true;
        if (!has_header_) return false;
        const bool header_full = header_used_ + entry_bound > reserve_;
        const bool data_full = data_used_ > 0 && (bytes > shard_bytes_ || data_used_ > shard_bytes_ - bytes);
        return header_full || data_full;
    }

    Placement place(std::uint64_t bytes, std::size_t entry_bound) {
        Placement placement;
        placement.opens_shard = would_open_shard(bytes, entry_bound);
        if (placement.opens_shard) open_shard(entry_bound);
        placement.shard = shard_;
        placement.reserve = reserve_;
        placement.offset = data_used_;
        data_used_ += bytes;
        header_used_ += entry_bound;
        total_bytes_ += bytes;
        total_entries_ += entry_bound;
        records_ += 1;
        return placement;
    }

  private:
    // The reserve that a whole shard of records like those so far would need, but at most four times the last
    // one: a long decode soon gets large shards, and a short run wastes no more than a few of its own
    // headers.
    void open_shard(std::size_t entry_bound) {
        std::size_t wanted = first_reserve;
        if (open_) {
            ++shard_;
            const std::uint64_t mean = std::max<std::uint64_t>(1, total_bytes_ / records_);
            const std::uint64_t expected = shard_bytes_ / mean + 1;
            const std::size_t limit = std::min(largest_reserve, reserve_ * 4);
            const std::size_t mean_entry = static_cast<std::size_t>(total_entries_ / records_);
            // Compared by division: the product may not fit.
            wanted = expected > limit / mean_entry ? limit : static_cast<std::size_t>(expected) * mean_entry;
            wanted = std::max(wanted, first_reserve);
        }
        wanted = std::max(wanted, header_base_bytes + entry_bound);
        reserve_ = (wanted + alignment - 1) / alignment * alignment;
        header_used_ = header_base_bytes;
        data_used_ = 0;
        open_ = true;
    }

    std::uint64_t shard_bytes_;
    bool has_header_ = true;
    bool open_ = false;
    std::uint32_t shard_ = 0;
    std::size_t reserve_ = 0;
    std::size_t header_used_ = 0;
    std::uint64_t data_used_ = 0;
    std::uint64_t total_bytes_ = 0;
    std::uint64_t total_entries_ = 0;
    std::uint64_t records_ = 0;
};

}  // namespace nsf
