#include "core/worker.hpp"

#include <pthread.h>
#include <signal.h>

#include <cstring>
#include <exception>
#include <new>

#include "core/checksum.hpp"

namespace nsf {

Worker::~Worker() {
    if (thread_.joinable()) thread_.join();
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

template <typename Action>
void Worker::guarded(Action action) {
    try {
        action();
    } catch (const EngineError& error) {
        fail(error);
    } catch (const std::bad_alloc&) {
        fail(EngineError("the writer thread ran out of memory"));
    } catch (const std::exception& error) {
        fail(EngineError(std::string("the writer thread failed: ") + error.what()));
    }
}

// Makes the block's bytes whole.
void Worker::receive(Block& block) {
    for (const PendingCopy& copy : block.pending) transfer_->wait(copy);
    auto& tail = tails_[static_cast<std::size_t>(block.dtype)];
    std::memcpy(block.data, tail.data(), block.carried);
    const std::size_t unaligned = block.used % alignment;
    std::memcpy(tail.data(), block.data + block.used - unaligned, unaligned);
}

void Worker::process(Block& block) {
    std::uint32_t& crc = crc_[static_cast<std::size_t>(block.dtype)];
    for (Segment& segment : block.segments) {
        crc = crc32c(crc, block.data + segment.begin, segment.size);
        if (!segment.last) continue;
        segment.record.crc = crc;
        crc = 0;
    }
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

void Worker::run() {
    // Signals belong to the interpreter's main thread.
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    while (Block* block = ring_.next()) {
        // Waited for even after a failure: the copies must not arrive in a block that is used again.
        guarded([&] { receive(*block); });
        if (!failed()) guarded([&] { process(*block); });
        ring_.recycle(*block);
    }
    guarded([&] { sink_.close(); });
}

}  // namespace nsf
