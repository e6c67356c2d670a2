// Holds the writer thread at a place of the test's choosing, so that the ring fills up for certain.
#pragma once

#include <condition_variable>
#include <mutex>

namespace nsf::testing_support {

class Gate {
  public:
    // Waits while the gate is shut.
    void pass() {
        std::unique_lock lock(mutex_);
        visited_ = true;
        changed_.notify_all();
        changed_.wait(lock, [this] { return open_; });
    }
    // Returns once somebody stands before the gate or has passed it.
    void wait_for_visitor() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return visited_; });
    }
    void open() {
        const std::lock_guard lock(mutex_);
        open_ = true;
        changed_.notify_all();
    }

  private:
    std::mutex mutex_;
    std::condition_variable changed_;
    bool open_ = false;
    bool visited_ = false;
};

}  // namespace nsf::testing_support
