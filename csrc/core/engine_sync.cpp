// Durability while a capture runs: marks behind what is stored, and waiting for a disk that may not answer.
#include <algorithm>
#include <cstdio>
#include <string>

#include "core/engine.hpp"

namespace nsf {

// Sends all that is stored to the writer, and a mark behind it. False, and nothing done, where a mark is on its way:
// handing blocks over all the time would fill the ring with almost empty ones.
bool Engine::start_sync() {
    if (ring_.is_marked()) return false;
    breaking([&] { hand_over_all(); });
    ring_.mark();
    ++marks_;
    unsynced_ = 0;
    return true;
}

void Engine::count_unsynced(std::uint64_t bytes) {
    unsynced_ += std::max<std::uint64_t>(bytes, 1);  // an empty record is one too
    const std::uint64_t limit = options_.durability.bytes;
    // Where a mark is on its way the next record tries again.
    if (limit > 0 && unsynced_ >= limit && memory_ == nullptr) start_sync();
}

// On a thread of its own.
void Engine::sync_now_and_then() {
    if (forked()) return;
    const ProducerLock lock(*this);
    if (closed_ || broken_ || worker_->failed() || unsynced_ == 0) return;
    try {
        start_sync();
    } catch (const EngineError&) {
        // broken_ has it for the next tap and for close().
    }
}

void Engine::sync() {
    check_process();
    std::uint64_t wanted = 0;
    for (bool sent = false; !sent;) {
        wait_for_marks(wanted);  // the one that is on its way
        const ProducerLock lock(*this);
        check_usable();
        sent = start_sync();
        wanted = marks_;
    }
    wait_for_marks(wanted);
    if (worker_->failed()) throw *worker_->failure();
}

EngineError Engine::give_up() {
    hung_.store(true, std::memory_order_relaxed);
    char seconds[32];
    std::snprintf(seconds, sizeof seconds, "%g", options_.patience);
    return EngineError("nothing could be written for " + std::string(seconds) +
                       " s: the disk or the network under " + options_.folder +
                       " does not answer; once it does, recover the run");
}

void Engine::wait_for_marks(std::uint64_t count) {
    if (worker_->wait_for_marks(count, patience())) return;
    const ProducerLock lock(*this);
    breaking([&] { throw give_up(); });
}

}  // namespace nsf
