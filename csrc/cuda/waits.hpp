// Every wait that orders the engine's work on a device, by name. The tests build the engine once for each of
// them with that one left out, and expect to see it fail.
#pragma once

#ifndef NSF_LEAVE_OUT_WAIT
#define NSF_LEAVE_OUT_WAIT 0
#endif

namespace nsf::cuda {

enum class Wait {
    none = 0,
    // The copy stream, before it reads staging memory, for what every compute stream has written there.
    copy_for_compute = 1,
    // A compute stream, before it writes staging memory, for the copy that last read it.
    compute_for_copy = 2,
    // The same for each further stream that writes the same staging block.
    other_compute_for_copy = 3,
    // The copy stream, for every compute stream that has written and not only for the last one.
    copy_for_other_compute = 4,
    // The checking thread, before it reads a block, for the copies into it.
    writer_for_copy = 5,
    // close(), before memory is given back, for the copy stream.
    close_for_copy = 6,
    // close(), before memory is given back, for the compute streams that have written and were not copied.
    close_for_compute = 7,
    // The producer, before it overwrites a table of positions, for the kernels that read it.
    producer_for_table = 8,
    // The producer, before it records a ticket's events anew, for the ticket that had them before.
    producer_for_ticket = 9,
    // A CUDA graph, before a replay writes its slots, for the copies out of them.
    replay_for_slots = 10,
};

consteval bool keeps(Wait wait) { return static_cast<int>(wait) != NSF_LEAVE_OUT_WAIT; }

}  // namespace nsf::cuda
