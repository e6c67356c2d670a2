// The writer thread: takes full blocks from the ring, computes checksums, hands bytes and whole records to
// the sink.
//
// Contract
//   A block whose bytes come from a device is read once every copy into it has arrived. A block that goes on in
//   the middle of the lane's last aligned piece gets the front of that piece from here (Block::carried).
//   The thread never touches Python and never throws out of itself: its first error is kept in failure(),
//   after which it recycles blocks unwritten, so that no producer waits for ever, and still lets the sink
//   publish what is whole. join() waits for the end of the ring (BlockRing::stop()). The log may be read by
//   anyone, at any time.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include "core/block_ring.hpp"
#include "core/device.hpp"
#include "core/error.hpp"
#include "core/record.hpp"
#include "core/sink.hpp"

namespace nsf {

// Whole records, in the order in which they became whole.
class RecordLog {
  public:
    void add(const Record& record) {
        const std::lock_guard lock(mutex_);
        records_.push_back(record);
    }
    std::vector<Record> snapshot() const {
        const std::lock_guard lock(mutex_);
        return {records_.begin(), records_.end()};
    }
    std::size_t size() const {
        const std::lock_guard lock(mutex_);
        return records_.size();
    }

  private:
    mutable std::mutex mutex_;
    std::deque<Record> records_;
};

class Worker {
  public:
    // transfer: for blocks with pending copies; null where there are none.
    Worker(BlockRing& ring, Sink& sink, DeviceTransfer* transfer = nullptr)
        : ring_(ring), sink_(sink), transfer_(transfer), thread_([this] { run(); }) {}
    ~Worker();
    Worker(const Worker&) = delete;
    Worker& operator=(const Worker&) = delete;

    void join() { thread_.join(); }

    bool failed() const {
        return failed_.load(std::memory_order_acquire);
    }  // pairs with the release in fail()
    std::optional<EngineError> failure() const;
    const RecordLog& log() const { return log_; }
    std::uint64_t bytes_written() const { return bytes_written_.load(std::memory_order_relaxed); }

  private:
    void run();
    void receive(Block& block);
    void process(Block& block);
    void fail(const EngineError& error);
    template <typename Action>
    void guarded(Action action);

    BlockRing& ring_;
    Sink& sink_;
    DeviceTransfer* const transfer_;
    RecordLog log_;
    std::array<std::uint32_t, dtype_count> crc_{};  // of the record that runs on into the lane's next block
    std::array<std::array<std::byte, alignment>, dtype_count> tails_{};  // the lanes' last unaligned bytes
    mutable std::mutex failure_mutex_;
    std::optional<EngineError> failure_;
    std::atomic<bool> failed_{false};
    std::atomic<std::uint64_t> bytes_written_{0};
    std::thread thread_;  // last: it uses everything above
};

}  // namespace nsf
