#include "core/pulse.hpp"

#include <utility>

#include "core/signals.hpp"

namespace nsf {

Pulse::Pulse(std::chrono::duration<double> interval, std::function<void()> action)
    : thread_([this, interval, action = std::move(action)] {
          block_signals();
          std::unique_lock lock(mutex_);
          while (!ended_.wait_for(lock, interval, [&] { return ends_; })) {
              lock.unlock();
              action();
              lock.lock();
          }
      }) {}

Pulse::~Pulse() {
    {
        const std::lock_guard lock(mutex_);
        ends_ = true;
    }
    ended_.notify_one();
    thread_.join();
}

}  // namespace nsf
