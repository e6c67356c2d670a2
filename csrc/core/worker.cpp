#include "core/worker.hpp"

#include <cstring>
#include <exception>
#include <new>

#include "core/checksum.hpp"
#include "core/signals.hpp"

namespace nsf {

Worker::Worker(BlockRing& ring, Sink& sink, DeviceTransfer* transfer)
    : ring_(ring), sink_(sink), transfer_(transfer), writer_([this] { write(); }) {
    try {
        checker_ = std::thread([this] { check(); });
    } catch (...) {
        ring_.stop_checked();
        writer_.join();
        throw;
    }
}

Worker::~Worker() {
    if (checker_.joinable()) join();
}

void Worker::join() {
    checker_.join();
    writer_.join();
}

std::optional<EngineError> Worker::failure() const {
    const std::lock_guard lock(failure_mutex_);
    return failure_;
}

void Worker::fail(const EngineError& error) {
    {
        const std::lock_guard lock(failure_mutex_);
        if (!failure_) failure_ = error;
    }
    failed_.store(true, std::memory_order_release);  // pairs with the acquire in failed()
}

// Whether the action came to its end.
template <typename Action>
bool Worker::guarded(Action action) {
    try {
        action();
        return true;
    } catch (const EngineError& error) {
        fail(error);
    } catch (const std::bad_alloc&) {
        fail(EngineError("the writer thread ran out of memory"));
    } catch (const std::exception& error) {
        fail(EngineError(std::string("the writer thread failed: ") + error.what()));
    }
    return false;
}

// Makes the block's bytes whole.
void Worker::receive(Block& block) {
    for (const PendingCopy& copy : block.pending) transfer_->wait(copy);
    auto& tail = tails_[static_cast<std::size_t>(block.dtype)];
    std::memcpy(block.data, tail.data(), block.carried);
    const std::size_t unaligned = block.used % alignment;
    std::memcpy(tail.data(), block.data + block.used - unaligned, unaligned);
}

void Worker::compute_checksums(Block& block) {
    std::uint32_t& crc = crc_[static_cast<std::size_t>(block.dtype)];
    for (Segment& segment : block.segments) {
        crc = crc32c(crc, block.data + segment.begin, segment.size);
        if (!segment.last) continue;
        segment.record.crc = crc;
        crc = 0;
    }
}

void Worker::check() {
    block_signals();
    bool sound = true;
    while (Block* block = ring_.next()) {
        if (ring_.is_mark(*block)) {
            ring_.hand_on(*block);
            continue;
        }
        // Waited for even after a failure: the copies must not arrive in a block that is used again.
        if (!guarded([&] { receive(*block); })) sound = false;
        // Once the writer has failed nothing is written any more, so nothing needs checking.
        if (sound && !failed()) compute_checksums(*block);
        block->sound = sound;
        ring_.hand_on(*block);
    }
    ring_.stop_checked();
    end();
}

// Until the condition, which is about what met_mutex_ guards, is true; false where nothing goes through for so long.
template <typename Condition>
bool Worker::wait(std::chrono::duration<double> patience, Condition met) const {
    std::unique_lock lock(met_mutex_);
    if (patience.count() <= 0) {
        met_.wait(lock, met);
        return true;
    }
    std::uint64_t before = recycled_.load(std::memory_order_relaxed);
    while (!met_.wait_for(lock, patience, met)) {
        const std::uint64_t now = recycled_.load(std::memory_order_relaxed);
        if (now == before) return false;
        before = now;
    }
    return true;
}

bool Worker::wait_for_marks(std::uint64_t count, std::chrono::duration<double> patience) const {
    return wait(patience, [&] { return marks_met_ >= count; });
}

bool Worker::join_within(std::chrono::duration<double> patience) {
    if (!wait(patience, [&] { return ended_ == 2; })) return false;
    join();
    return true;
}

void Worker::end() {
    // Notified under the mutex: what waits may destroy this once it can have it.
    const std::lock_guard lock(met_mutex_);
    ++ended_;
    met_.notify_all();
}

void Worker::store(Block& block) {
    sink_.write(block);
    std::uint64_t bytes = 0;
    for (Segment& segment : block.segments) {
        bytes += segment.size;
        if (!segment.last) continue;
        sink_.add(segment.record);
        log_.add(segment.record);
    }
    sink_.flush(block.dtype);
    bytes_written_.fetch_add(bytes, std::memory_order_relaxed);
}

void Worker::write() {
    block_signals();
    // Not failed(): blocks that went through before the checker failed are still written.
    bool writing = true;
    while (Block* block = ring_.next_checked()) {
        if (ring_.is_mark(*block)) {
            writing = writing && guarded([&] { sink_.sync(); });
            ring_.recycle(*block);
            const std::lock_guard lock(met_mutex_);
            ++marks_met_;
            met_.notify_all();
            continue;
        }
        writing = writing && block->sound && guarded([&] { store(*block); });
        ring_.recycle(*block);
        recycled_.fetch_add(1, std::memory_order_relaxed);
    }
    guarded([&] { sink_.close(); });
    end();
}

}  // namespace nsf
