// What tests say to the stub CUDA driver, and ask of it.
//
// The test links libnsf_stub_cuda.so and the engine opens the same file, so that both see one driver. Handles of
// streams are taken as plain pointers and results as plain numbers: this header goes with anybody's declarations
// of the driver API. Every function may be called from any thread, and none orders anything in
// ThreadSanitizer's eyes, reset() apart. A stream argument of nullptr means the legacy default streams.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#define NSF_STUB_API __attribute__((visibility("default")))

namespace nsf::stub {

// What a stream does; also sets of it.
enum class Kind : unsigned {
    dtoh = 1,
    htod = 2,
    dtod = 4,
    kernel = 8,
    record = 16,  // cuEventRecord
    wait = 32,    // cuStreamWaitEvent
    copy = 7,
    event = 48,
    all = 63,
};
constexpr Kind operator|(Kind left, Kind right) {
    return static_cast<Kind>(static_cast<unsigned>(left) | static_cast<unsigned>(right));
}

// What memory is filled with: fresh from cuMemAlloc, after cuMemFree, and around an allocation.
inline constexpr std::byte poison{0xFB};
inline constexpr std::byte freed_poison{0xFD};
inline constexpr std::byte guard_fill{0xFE};

// ---- Beginning and end ----------------------------------------------------------------------------------------

// Back to a fresh machine: one device, no holds, delays, failures, kernels or logs. What is queued is dropped, what
// runs is waited for. cuInit stays done. Returns what was left over and what was done wrong, in words: streams,
// events, allocations, registrations, modules, retained contexts, contexts on stacks, queued operations, damaged
// guard zones, memory freed or unregistered while queued operations used it. Empty is what a test wants.
NSF_STUB_API std::vector<std::string> reset();
// As if cuInit had never been called.
NSF_STUB_API void uninitialise();
// What process exit does: streams stop, calls return 4. reset() brings the driver back.
NSF_STUB_API void deinitialise();

// ---- The machine ----------------------------------------------------------------------------------------------

NSF_STUB_API void set_device_count(int count);  // at most 8; without one cuInit returns 100
NSF_STUB_API void set_driver_version(int version);
NSF_STUB_API void set_memory(std::size_t free, std::size_t total);  // of each device
NSF_STUB_API void set_lockable_bytes(std::size_t bytes);            // cuMemHostRegister beyond it returns 2
NSF_STUB_API void set_attribute(int attribute, int value);          // of every device
NSF_STUB_API void set_capturing(const void* stream, bool capturing);
// What has gone into captures since the last call, as a graph: its number.
NSF_STUB_API std::size_t take_graph();
// Does it on the stream, whose context must be current, in the order in which it was captured. Returns the driver's code.
NSF_STUB_API int launch_graph(std::size_t graph, void* stream);
// Some other thread captures in global mode: event queries and synchronisations of threads that are in that mode too
// return 900, as they would break the capture.
NSF_STUB_API void set_global_capture(bool capturing);

// ---- Kernels --------------------------------------------------------------------------------------------------

struct Parameter {
    std::size_t bytes;
    bool pointer = false;  // must be null or lie in live memory of the context when the kernel runs
};
inline constexpr Parameter pointer{sizeof(std::uint64_t), true};
template <typename Value>
constexpr Parameter value() {
    return {sizeof(Value), false};
}

// What a kernel's host function gets.
class NSF_STUB_API Launch {
  public:
    unsigned grid_x = 1, grid_y = 1, grid_z = 1;
    unsigned block_x = 1, block_y = 1, block_z = 1;
    unsigned shared_bytes = 0;
    void** parameters = nullptr;  // as cuLaunchKernel got them, the values copied when it was called
    const void* context = nullptr;

    template <typename Value>
    Value get(std::size_t index) const {
        Value result;
        std::memcpy(&result, parameters[index], sizeof result);
        return result;
    }
    // The memory behind a pointer parameter: the whole array must lie in one live allocation of the context, or in
    // mapped host memory; else the launch ends there and the context gets error 700.
    template <typename Value>
    Value* array(std::size_t index, std::size_t count) const {
        return reinterpret_cast<Value*>(checked(get<std::uint64_t>(index), count * sizeof(Value)));
    }
    std::uint64_t checked(std::uint64_t address, std::size_t bytes) const;
};

// Runs on the thread of the stream. An exception from it becomes error 719 of the context.
using Kernel = std::function<void(const Launch&)>;
NSF_STUB_API void register_kernel(const std::string& name, std::vector<Parameter> parameters, Kernel kernel);

// ---- When operations run --------------------------------------------------------------------------------------

// Operations of these kinds, or of this stream, are not begun until release(). step() lets so many of them pass.
NSF_STUB_API void hold(Kind kinds);
NSF_STUB_API void step(Kind kinds, unsigned count = 1);
NSF_STUB_API void release(Kind kinds = Kind::all);
NSF_STUB_API void hold_stream(const void* stream);
NSF_STUB_API void step_stream(const void* stream, unsigned count = 1);
NSF_STUB_API void release_stream(const void* stream);

// Return once so many streams stand before a held operation of these kinds; the stream stands before a held one;
// so many operations of these kinds were executed since reset().
NSF_STUB_API void wait_until_held(Kind kinds, unsigned count = 1);
NSF_STUB_API void wait_until_held_stream(const void* stream);
NSF_STUB_API void wait_until_executed(Kind kinds, std::uint64_t count);
// Operations of the stream that are queued or running.
NSF_STUB_API std::size_t pending(const void* stream);

// A pause of min to max before each operation of these kinds, or of this stream (which then wins). Each stream
// draws from a generator of its own, seeded from this one, when it is made, and from the order in which streams are made: so call seed() first.
NSF_STUB_API void seed(std::uint64_t value);
NSF_STUB_API void delay(Kind kinds, std::chrono::microseconds min, std::chrono::microseconds max);
NSF_STUB_API void delay_stream(const void* stream, std::chrono::microseconds min,
                               std::chrono::microseconds max);

// One operation at a time, of a stream drawn at random, and later than a driver would: some at each enqueue and query,
// the rest when somebody waits. The same calls from one thread with the same seed give the same order. Delays do
// not count meanwhile.
// After `patience` work goes on although nobody calls, and a call returns although its operations have not ended (a
// kernel may wait for the caller): on a loaded machine that can change the order, so use a long one to repeat it.
NSF_STUB_API void reorder(std::uint64_t seed,
                          std::chrono::milliseconds patience = std::chrono::milliseconds(20));

// ---- Failures -------------------------------------------------------------------------------------------------

// The n-th call from now (1: the next; of this function, or of any) returns the code and has no effect. Does not meet
// cuGetErrorName and cuGetErrorString, which are neither counted nor logged.
NSF_STUB_API void fail_call(std::uint64_t n, int code, std::string name = {});
// The n-th operation of these kinds that a stream begins from now on is not executed, and its context is lost: every
// later call and synchronisation in it returns the code. What is queued there ends without being executed.
NSF_STUB_API void fail_asynchronously(std::uint64_t n, int code, Kind kinds = Kind::all);
// The context of the device is lost now.
NSF_STUB_API void break_context(int device, int code);
// Failures that were asked for and have not happened.
NSF_STUB_API std::size_t failures_left();

// ---- What happened --------------------------------------------------------------------------------------------

struct Call {
    std::string_view name;
    std::thread::id thread;
    int result = -1;  // -1: has not returned yet
};
NSF_STUB_API std::uint64_t call_count();
NSF_STUB_API std::uint64_t call_count(std::string_view name);
NSF_STUB_API std::vector<Call> calls(std::uint64_t since = 0);
NSF_STUB_API std::vector<Call> calls(std::string_view name);

struct Executed {
    Kind kind;
    const void* stream;  // nullptr: the legacy default stream
    int device;
    std::string kernel;
    std::size_t bytes;
};
// In the order in which operations ended.
NSF_STUB_API std::vector<Executed> executed();
NSF_STUB_API std::uint64_t executed_count(Kind kinds = Kind::all);

struct Counters {
    std::uint64_t dtoh_bytes = 0, htod_bytes = 0, dtod_bytes = 0;  // executed
    std::uint64_t dtoh_unpinned = 0, htod_unpinned = 0;  // calls with host memory that is not page-locked
    std::uint64_t captured = 0;  // operations that went into a capture, and were not executed
    std::uint64_t allocated_bytes = 0, registered_bytes = 0;                                 // now
    std::uint64_t streams = 0, events = 0, allocations = 0, registrations = 0, modules = 0;  // now
    std::uint64_t unpinned() const { return dtoh_unpinned + htod_unpinned; }
};
NSF_STUB_API Counters counters();

}  // namespace nsf::stub
