// A stream: a thread with a queue of operations, executed in order. Nothing but completions orders two streams.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <vector>

#include "stub_control.hpp"

namespace nsf::stub {

struct Context;
struct RegisteredKernel;
struct Runtime;
class Allocation;

inline constexpr std::size_t kind_count = 6;

constexpr bool includes(Kind kinds, Kind kind) {
    return (static_cast<unsigned>(kinds) & static_cast<unsigned>(kind)) != 0;
}
// Of a single kind: its place in an array.
constexpr std::size_t index_of(Kind kind) {
    return static_cast<std::size_t>(__builtin_ctz(static_cast<unsigned>(kind)));
}
constexpr Kind kind_at(std::size_t index) { return static_cast<Kind>(1U << index); }

// That an operation has ended. Also what an event stands for: the record operation's completion.
struct Completion {
    // Set with release, once, by the stream; whoever is told about the end reads it with acquire in a Seen scope.
    std::atomic<bool> done{false};
    std::chrono::steady_clock::time_point when;

    bool ended() const { return done.load(std::memory_order_relaxed); }  // bookkeeping: orders nothing
};

struct Operation {
    Kind kind = Kind::wait;
    // Set with release by the thread that enqueues, read with acquire by the stream.
    std::atomic<bool> published{false};
    std::shared_ptr<Completion> completion = std::make_shared<Completion>();
    // Must have ended before: the event, and what the legacy default stream implies.
    std::vector<std::shared_ptr<Completion>> after;

    // Copies. Pageable host memory is read when the call is made, into `staged`.
    std::uint64_t to = 0, from = 0;
    std::size_t bytes = 0;
    std::vector<std::byte> staged;
    bool host_is_locked = false;

    // Kernels.
    std::shared_ptr<const RegisteredKernel> kernel;
    Launch launch;
    std::vector<std::byte> values;
    std::vector<void*> places;  // of the values: what launch.parameters points to

    // What is executed stays allocated meanwhile.
    std::vector<std::shared_ptr<Allocation>> used;

    bool passed_hold = false;
    std::optional<std::chrono::steady_clock::time_point> not_before;

    // Another one that does the same.
    std::unique_ptr<Operation> copy() const;
    bool may_start() const;
    // Whether it reads or writes a byte of the range, as far as the stub can tell.
    bool uses(std::uint64_t begin, std::size_t size) const;
};

struct Hold {
    bool on = false;
    std::uint64_t allowed = 0;

    bool stops() const { return on && allowed == 0; }
    void pass() {
        if (on) --allowed;
    }
};

struct Stream {
    Stream(Runtime& runtime, Context& its_context, std::uint64_t its_handle, bool is_blocking,
           bool is_legacy);
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;

    Runtime& state;
    Context& context;
    const std::uint64_t handle;
    const bool blocking;  // synchronises with the legacy default stream
    const bool legacy;
    std::mt19937_64 random;

    std::deque<std::unique_ptr<Operation>> queue;
    std::shared_ptr<Completion> last;    // of what was enqueued last
    const Operation* current = nullptr;  // what is being executed
    bool closed = false;                 // no more will be enqueued: the thread ends when the queue is empty
    bool at_hold = false;
    bool capturing = false;
    Hold own_hold;
    std::optional<std::pair<std::chrono::microseconds, std::chrono::microseconds>> own_delay;
    std::condition_variable changed;

    // Starts the thread, which ends by taking the stream out of the runtime's map.
    void start();
    // Closes the stream and forgets what is queued; completions count as ended.
    void drop();
    bool ready() const;              // its next operation could begin
    bool is_held(Kind kinds) const;  // it stands before one of these kinds that may not pass

  private:
    Hold& hold();
    bool stops(const Operation& operation) const;
    void pass_hold(Operation& operation);
    void choose_delay(Operation& operation);
    std::unique_ptr<Operation> next(std::unique_lock<std::mutex>& lock);
    void run();
    // In a Seen scope, without the mutex. Returns 0 or the error by which the context is lost.
    int execute(Operation& operation);
    int prepare(Operation& operation);
    void retire(Operation& operation, bool executed);
};

}  // namespace nsf::stub
