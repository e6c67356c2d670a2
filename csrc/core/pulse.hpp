// A thread that does something again and again.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace nsf {

// Calls `action`, which must not throw, every `interval` until it is destroyed; a call that has begun is waited for.
class Pulse {
  public:
    Pulse(std::chrono::duration<double> interval, std::function<void()> action);
    ~Pulse();
    Pulse(const Pulse&) = delete;
    Pulse& operator=(const Pulse&) = delete;

  private:
    std::mutex mutex_;
    std::condition_variable ended_;
    bool ends_ = false;
    std::thread thread_;
};

}  // namespace nsf
