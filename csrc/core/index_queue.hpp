// A bounded queue of indices between one producer and one consumer.
//
// Contract
//   Who writes:  push() is called by one thread at a time, pop(), try_pop() by one thread at a time. "At a
//   time" is the
//                callers' business (the engine's producer mutex, the one checking or writer thread).
//   Capacity:    a power of two fixed at construction, at most half the range of Position, so that
//                tail - head is the fill level even after the positions have wrapped around.
//   Full:        a push onto a full queue is a programming error (the ring holds fewer blocks than the queue
//   has slots):
//                it is reported by push() returning false and never overwrites.
//   Empty:       pop() sleeps (futex through std::atomic::wait) until something is pushed; try_pop() returns
//   nothing. Visibility:  everything that the producer wrote before push() is visible to the consumer after
//   the pop() that
//                returns that index.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <thread>

namespace nsf {

// Position is the type of the two running counters. Tests use an 8-bit one to pass its wrap-around many
// times.
template <typename Position = std::uint32_t>
class IndexQueue {
  public:
    explicit IndexQueue(std::size_t at_least)
        : capacity_(round_up(at_least)), slots_(new std::uint32_t[capacity_]) {}

    IndexQueue(const IndexQueue&) = delete;
    IndexQueue& operator=(const IndexQueue&) = delete;

    bool push(std::uint32_t index) {
        const Position tail = tail_.load(std::memory_order_relaxed);  // only this side writes it
        // acquire: pairs with the release in take(); the slot is not reused before the consumer has read it.
        const Position head = head_.load(std::memory_order_acquire);
        if (static_cast<Position>(tail - head) >= capacity_) return false;
        slots_[tail & (capacity_ - 1)] = index;
        // release: pairs with the acquire in try_pop() and pop(); publishes the slot and all that came before
        // it.
        tail_.store(static_cast<Position>(tail + 1), std::memory_order_release);
        tail_.notify_one();
        return true;
    }

    std::optional<std::uint32_t> try_pop() {
        const Position head = head_.load(std::memory_order_relaxed);  // only this side writes it
        // acquire: pairs with the release in push().
        if (tail_.load(std::memory_order_acquire) == head) return std::nullopt;
        return take(head);
    }

    std::uint32_t pop() {
        const Position head = head_.load(std::memory_order_relaxed);
        // wait() returns once the tail differs from head; its acquire pairs with the release in push().
        tail_.wait(head, std::memory_order_acquire);
        return take(head);
    }

    // pop() that gives up: nothing where nothing was pushed for so long. It looks now and then, so that what comes is
    // met up to a millisecond late: for a consumer that has to wait anyway.
    std::optional<std::uint32_t> pop_within(std::chrono::duration<double> patience) {
        constexpr std::chrono::microseconds shortest{20};
        constexpr std::chrono::microseconds longest{1000};
        const auto start = std::chrono::steady_clock::now();
        for (auto nap = shortest;; nap = std::min(nap * 2, longest)) {
            if (const std::optional<std::uint32_t> index = try_pop()) return index;
            if (std::chrono::steady_clock::now() - start >= patience) return std::nullopt;
            std::this_thread::sleep_for(nap);
        }
    }

    // Exact on the consumer's side for "at least so many": only the consumer makes it smaller.
    std::size_t size() const {
        const Position head = head_.load(std::memory_order_acquire);
        return static_cast<Position>(tail_.load(std::memory_order_acquire) - head);
    }

    std::size_t capacity() const { return capacity_; }

  private:
    static std::size_t round_up(std::size_t at_least) {
        std::size_t capacity = 1;
        while (capacity < at_least) capacity *= 2;
        if (capacity > (static_cast<std::size_t>(static_cast<Position>(-1)) + 1) / 2) {
            throw std::length_error("IndexQueue: capacity exceeds half the range of its position type");
        }
        return capacity;
    }

    std::uint32_t take(Position head) {
        const std::uint32_t index = slots_[head & (capacity_ - 1)];
        // release: pairs with the acquire of head in push(); the slot has been read.
        head_.store(static_cast<Position>(head + 1), std::memory_order_release);
        return index;
    }

    const std::size_t capacity_;
    const std::unique_ptr<std::uint32_t[]> slots_;
    alignas(64) std::atomic<Position> head_{0};  // written by the consumer
    alignas(64) std::atomic<Position> tail_{0};  // written by the producer
};

}  // namespace nsf
