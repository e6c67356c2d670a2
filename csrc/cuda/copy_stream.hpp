// The stream on which bytes leave a device, in batches that are numbered by tickets.
//
// Contract
//   Producer (under the engine's producer mutex, the device's context current): after(), copy(), finish_batch(),
//   hold_back(), arrived(). Writer thread: wait(). Batches end in the order of their tickets, so one that has
//   arrived implies all before it.
//   The events of a ticket are used again `slots` tickets later; the producer waits for the earlier one first.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "cuda/driver.hpp"

namespace nsf::cuda {

class CopyStream {
  public:
    static constexpr std::size_t slots = 256;

    // Creates the stream and all events; the device's context must be current, here and in the destructor.
    explicit CopyStream(const Driver& driver);
    ~CopyStream();
    CopyStream(const CopyStream&) = delete;
    CopyStream& operator=(const CopyStream&) = delete;

    // The copies from here on come after all that `compute` has been given so far.
    void after(Stream compute);
    // Part of the batch that finish_batch() will end.
    void copy(void* host, Address device, std::size_t bytes);
    // The ticket that finish_batch() will return.
    std::uint64_t next_ticket() const { return last_ + 1; }
    std::uint64_t finish_batch();

    // What `compute` is given from here on comes after the batch.
    void hold_back(Stream compute, std::uint64_t ticket);
    // Whether the batch has arrived; asks the driver, and never waits. Ticket 0 always has.
    bool arrived(std::uint64_t ticket);
    // The last batch that is known to have arrived, without asking.
    std::uint64_t last_arrived() const { return arrived_.load(std::memory_order_relaxed); }
    // Returns once the batch has arrived. Any thread.
    void wait(std::uint64_t ticket);
    // Returns once nothing is under way; reports no error, since it is called when all is given up.
    void drain() noexcept;

    std::uint64_t bytes() const { return bytes_; }
    std::uint64_t copies() const { return copies_; }
    std::uint64_t host_waits() const { return host_waits_; }
    std::uint64_t device_waits() const { return device_waits_; }
    double seconds() const;

  private:
    struct Slot {
        Event started = nullptr;
        Event done = nullptr;
    };

    Slot& slot(std::uint64_t ticket) { return slots_[ticket % slots]; }
    void begin_batch();
    void note_arrival(std::uint64_t ticket);
    void destroy() noexcept;

    const Driver& driver_;
    Stream stream_ = nullptr;
    Event ready_ = nullptr;  // recorded on a compute stream and waited for at once, so one does for all
    std::vector<Slot> slots_;
    std::uint64_t last_ = 0;  // ticket given out
    bool in_batch_ = false;
    std::uint64_t bytes_ = 0;
    std::uint64_t copies_ = 0;
    std::uint64_t host_waits_ = 0;
    std::uint64_t device_waits_ = 0;

    std::atomic<std::uint64_t> arrived_{0};
    mutable std::mutex times_mutex_;  // guards what follows
    std::uint64_t timed_ = 0;         // tickets whose time has been added
    double seconds_ = 0;
};

}  // namespace nsf::cuda
