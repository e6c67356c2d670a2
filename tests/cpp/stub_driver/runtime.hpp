// The state of the stub driver, and the frame around each of its functions.
//
// Everything here is guarded by Runtime::mutex, in Unseen scopes; operations are executed without it. The runtime is
// never destroyed: streams may still run when the process ends.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "cuda_abi.hpp"
#include "memory.hpp"
#include "stream.hpp"
#include "stub_control.hpp"
#include "unseen.hpp"

namespace nsf::stub {

inline constexpr int max_devices = 8;

struct Context {
    int device = 0;
    unsigned references = 0;
    CUresult broken = code::success;  // what every call returns once the context is lost
    Stream* legacy = nullptr;         // made when first used
    MemoryTable memory;
};

struct Event {
    Context* context = nullptr;
    bool timing = true;
    bool captured = false;               // the last record went into a capture
    std::shared_ptr<Completion> latest;  // of the last record; null before the first
};

struct RegisteredKernel {
    std::string name;
    std::vector<Parameter> parameters;
    Kernel run;
};

struct Module {
    Context* context = nullptr;
    std::vector<std::string> names;
};

struct Function {
    std::uint64_t module = 0;
    Context* context = nullptr;
    std::shared_ptr<const RegisteredKernel> kernel;
    unsigned shared_limit = 48 * 1024;
};

struct Graph {
    std::vector<std::unique_ptr<Operation>> operations;
    std::shared_ptr<Completion> last;  // of the last launch: a graph runs once at a time, on whatever streams
};

// A failure that a test asked for, at the n-th event from now.
struct PlannedFailure {
    std::uint64_t left;
    CUresult result;
    std::string name;        // of the function; "" is any
    Kind kinds = Kind::all;  // of the operation

    // Counts one event; true when it is the one.
    bool count() { return left != 0 && --left == 0; }
};

struct Range {
    std::chrono::microseconds min{0}, max{0};
};

struct Runtime {
    std::mutex mutex;
    std::condition_variable
        host_changed;  // for host threads: an operation ended, a stream stopped or went away
    // Read without the mutex, and by a forked child.
    std::atomic<bool> forked{false};
    std::atomic<bool> ended{false};

    bool initialised = false;
    std::uint64_t generation = 0;  // counts resets
    std::array<Context, max_devices> contexts;
    int device_count = 1;
    int driver_version = 13000;
    std::map<int, int> attributes;
    std::size_t free_memory = 0, total_memory = 0;
    std::size_t lockable = 0, locked = 0;
    Registrations registrations;

    std::uint64_t next_handle = 1;
    std::map<std::uint64_t, std::unique_ptr<Stream>>
        streams;  // the destroyed ones too until they have run dry
    std::map<std::uint64_t, Event> events;
    std::map<std::uint64_t, Module> modules;
    std::map<std::uint64_t, Function> functions;
    std::map<std::string, std::shared_ptr<const RegisteredKernel>, std::less<>> kernels;
    std::atomic<std::int64_t> contexts_on_stacks{0};

    std::uint64_t seed = 0;
    std::uint64_t streams_made = 0;
    std::array<Hold, kind_count> holds;
    std::array<Range, kind_count> delays;
    Hold legacy_hold;
    Range legacy_delay;
    bool legacy_delayed = false;
    bool legacy_capturing = false;
    bool global_capture = false;

    // Reordering: which stream may begin its next operation, and how many may before somebody waits.
    std::optional<std::mt19937_64> reordering;
    Stream* turn = nullptr;
    std::chrono::milliseconds patience{0};
    std::uint64_t credits = 0;
    std::list<std::shared_ptr<Completion>> awaited;  // by host threads

    std::vector<std::unique_ptr<Operation>> captured;  // that no graph has taken yet
    std::vector<Graph> graphs;                         // by number

    std::list<PlannedFailure> call_failures;
    std::list<PlannedFailure> operation_failures;
    std::vector<std::string> problems;  // that reset() will tell
    std::deque<Call> calls;
    std::deque<Executed> executed;
    std::array<std::uint64_t, kind_count> executed_counts{};
    Counters counters;

    // Orders reset() after everything that streams did.
    std::atomic<unsigned> streams_ended{0};

    void set_defaults();
    std::uint64_t new_handle(unsigned type) {
        return (std::uint64_t{0x5700 + type} << 48) | (next_handle++ << 4);
    }
    Context* context_of(CUcontext handle);
    void destroy(Context& context, std::unique_lock<std::mutex>& waiting);
    void break_context(Context& context, CUresult result);
    void wake_streams();
    bool anything_runs(const Context* context = nullptr) const;  // of the context, or of any
    // Operations of live contexts, queued or running, that use a byte of the range.
    std::size_t users_of(std::uint64_t begin, std::size_t bytes) const;
    bool is_device_memory(std::uint64_t begin, std::size_t bytes) const;

    // What process exit does: streams stop, calls are refused. Waits a little for what is being executed.
    void end();

    // reorder.cpp
    void advance();
    void pump(std::unique_lock<std::mutex>& waiting, unsigned least);
};

Runtime& runtime();

template <typename Handle>
std::uint64_t number(Handle handle) {
    return reinterpret_cast<std::uint64_t>(handle);
}
template <typename Handle>
Handle handle_of(std::uint64_t number) {
    return reinterpret_cast<Handle>(number);
}
CUcontext handle_of(const Context& context);

// The object behind a handle, or nullptr.
template <typename Object>
Object* find(std::map<std::uint64_t, Object>& objects, std::uint64_t handle) {
    const auto found = objects.find(handle);
    return found == objects.end() ? nullptr : &found->second;
}

// The calling thread's stack of contexts, emptied by every reset().
class ContextStack {
  public:
    // Empties the stack at the first call after a reset().
    void begin_generation(std::uint64_t generation) {
        if (generation_ == generation) return;
        generation_ = generation;
        size_ = 0;
    }
    bool belongs_to(std::uint64_t generation) const { return generation_ == generation; }
    bool empty() const { return size_ == 0; }
    std::size_t size() const { return size_; }
    Context* back() const { return entries_[size_ - 1]; }
    void clear() { size_ = 0; }
    void pop_back() { --size_; }
    // Deeper than any program goes; what is beyond is a defect of the test.
    void push_back(Context* context) { entries_.at(size_++) = context; }

  private:
    std::array<Context*, 256> entries_{};
    std::size_t size_ = 0;
    std::uint64_t generation_ = 0;
};
// Of the calling thread. Needs no destructor: static objects still call the driver when thread-local ones are gone.
ContextStack& context_stack();

// What a function asks for: nothing, cuInit, a current context that is not lost, a current context. Of the last
// kind are those that give something back: they do it even in a lost context, and return its error all the same.
enum class Needs { nothing, driver, context, context_to_clean_up };

// One call of a driver function: holds the mutex, stands in the log, and knows the current context.
class Caller {
  public:
    Caller(std::string_view name, Needs needs);
    ~Caller();
    Caller(const Caller&) = delete;
    Caller& operator=(const Caller&) = delete;

    Runtime& state;
    std::unique_lock<std::mutex> lock;
    CUresult refusal = code::success;
    Context* context = nullptr;

    CUresult finish(CUresult result);
    // The stream behind the handle, if it belongs to the current context; nullptr is its legacy default stream.
    Stream* stream(CUstream handle);
    // Puts the operation into the stream's queue. Returns its completion, or nullptr if the stream is capturing.
    std::shared_ptr<Completion> enqueue(Stream& stream, std::unique_ptr<Operation> operation);
    // Waits for the operation (nullptr: for nothing), and is ordered after it.
    CUresult wait(const std::shared_ptr<Completion>& completion);

  private:
    CUresult admit(std::string_view name);

    Needs needs_;
    std::uint64_t generation_;
    std::size_t place_;
};

// Of this thread: 0 is global, 1 thread-local, 2 relaxed.
int& capture_mode();
// Calls that might synchronise are not allowed while anybody captures in global mode, unless the thread has said that
// it knows what it does.
bool would_break_a_capture(const Caller& caller);

// The frame around every function: action(Caller&) with the mutex held.
template <typename Action>
CUresult call(std::string_view name, Needs needs, Action action) {
    // Without the mutex: in a child it may be held by a thread that does not exist there.
    if (runtime().forked.load(std::memory_order_relaxed)) return code::not_initialized;
    if (runtime().ended.load(std::memory_order_relaxed)) return code::deinitialized;
    const Unseen unseen;
    Caller caller(name, needs);
    if (caller.refusal != code::success) return caller.finish(caller.refusal);
    try {
        return caller.finish(action(caller));
    } catch (const std::bad_alloc&) {
        return caller.finish(code::out_of_memory);
    }
}

}  // namespace nsf::stub
