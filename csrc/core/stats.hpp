// The counters of a capture.
#pragma once

#include <cstdint>

namespace nsf {

struct Stats {
    std::uint64_t records = 0;  // whole, in the sink
    std::uint64_t taken =
        0;  // by taps, scales not counted: those of them that are not whole are on their way
    std::uint64_t acknowledged = 0;   // of them, durable
    std::uint64_t bytes_in = 0;       // of the captured tensors, before casts and selections
    std::uint64_t bytes_written = 0;  // to the sink
    std::uint64_t stalls = 0;         // times that a tap waited for a free block
    double stall_seconds = 0;
    std::uint64_t drops = 0;
    std::uint64_t peak_ring_bytes = 0;
    std::uint64_t ring_bytes = 0;
    std::uint64_t pinned_bytes = 0;  // of the ring; 0 where no device was captured from
    std::uint64_t tap_calls = 0;
    double tap_seconds = 0;  // in taps, stalls included
    std::uint64_t steps = 0;
};

}  // namespace nsf
