// What stands behind the ring: a thread that checks full blocks, that is, computes checksums, and one that hands bytes
// and whole records to the sink, so that one block is checked while another is on its way to the disk.
//
// Contract
//   A block whose bytes come from a device is checked once every copy into it has arrived. A block that goes on in
//   the middle of the lane's last aligned piece gets the front of that piece from here (Block::carried).
//   Blocks are written in the order in which they were submitted, and the writer thread alone uses the sink. Neither
//   thread touches Python or throws out of itself: the first error of the two is kept in failure(). Blocks from the one
//   that failed on are recycled unwritten, so that no producer waits for ever; those before it are written, and the sink
//   still publishes what is whole. At a mark of the ring the writer has the sink make everything durable. join() waits for the end of the ring (BlockRing::stop()). The log may be read by
//   anyone, at any time.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
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
    Worker(BlockRing& ring, Sink& sink, DeviceTransfer* transfer = nullptr);
    ~Worker();
    Worker(const Worker&) = delete;
    Worker& operator=(const Worker&) = delete;

    void join();
    // join(), or false where a disk that does not answer keeps the writer: nothing went through for so long. The threads
    // then still use the ring, the sink and this, none of which may be destroyed. Zero patience waits for ever.
    bool join_within(std::chrono::duration<double> patience);

    bool failed() const {
        return failed_.load(std::memory_order_acquire);
    }  // pairs with the release in fail()
    std::optional<EngineError> failure() const;
    const RecordLog& log() const { return log_; }
    // Waits until the writer has met so many marks, whether or not it could do what they ask for.
    // False as in join_within().
    bool wait_for_marks(std::uint64_t count, std::chrono::duration<double> patience) const;
    std::uint64_t bytes_written() const { return bytes_written_.load(std::memory_order_relaxed); }

  private:
    void check();
    void receive(Block& block);
    void compute_checksums(Block& block);
    void write();
    void store(Block& block);
    void fail(const EngineError& error);
    void end();
    template <typename Condition>
    bool wait(std::chrono::duration<double> patience, Condition met) const;
    template <typename Action>
    bool guarded(Action action);

    BlockRing& ring_;
    Sink& sink_;
    DeviceTransfer* const transfer_;
    RecordLog log_;
    // The checker's own:
    std::array<std::uint32_t, dtype_count> crc_{};  // of the record that runs on into the lane's next block
    std::array<std::array<std::byte, alignment>, dtype_count> tails_{};  // the lanes' last unaligned bytes
    mutable std::mutex failure_mutex_;
    std::optional<EngineError> failure_;
    std::atomic<bool> failed_{false};
    std::atomic<std::uint64_t> bytes_written_{0};
    std::atomic<std::uint64_t> recycled_{0};  // blocks: whether anything goes through
    mutable std::mutex met_mutex_;
    mutable std::condition_variable met_;
    std::uint64_t marks_met_ = 0;  // guarded by met_mutex_, as is the next
    int ended_ = 0;                // of the two threads
    std::thread checker_;
    std::thread writer_;  // last: the two use everything above
};

}  // namespace nsf
