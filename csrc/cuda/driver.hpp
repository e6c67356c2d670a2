// The CUDA driver API as a table of functions, opened at run time: one build serves machines with and without
// a GPU, and no toolkit is needed to make it. Declared from the API's documentation (CUDA 11 to 13 have the
// same ABI for all of these).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace nsf::cuda {

using Result = int;
using Address = std::uint64_t;  // of device memory
using Context = void*;
using Stream = void*;
using Event = void*;
using Module = void*;
using Function = void*;

inline constexpr Result success = 0;
inline constexpr Result out_of_memory = 2;
inline constexpr Result not_ready = 600;

inline constexpr unsigned event_blocking_sync = 1;
inline constexpr unsigned event_disable_timing = 2;
inline constexpr unsigned stream_non_blocking = 1;
inline constexpr unsigned host_register_portable = 1;
inline constexpr unsigned host_register_device_map = 2;
inline constexpr int function_max_dynamic_shared_size = 8;

// NAME in Driver, the exported symbol, the parameters.
#define NSF_CUDA_DRIVER_FUNCTIONS(X)                                                                        \
    X(init, "cuInit", (unsigned flags))                                                                     \
    X(driver_get_version, "cuDriverGetVersion", (int* version))                                             \
    X(get_error_name, "cuGetErrorName", (Result result, const char** name))                                 \
    X(get_error_string, "cuGetErrorString", (Result result, const char** text))                             \
    X(device_get, "cuDeviceGet", (int* device, int ordinal))                                                \
    X(device_get_count, "cuDeviceGetCount", (int* count))                                                   \
    X(device_get_name, "cuDeviceGetName", (char* name, int size, int device))                               \
    X(primary_context_retain, "cuDevicePrimaryCtxRetain", (Context * context, int device))                  \
    X(primary_context_release, "cuDevicePrimaryCtxRelease_v2", (int device))                                \
    X(context_get_current, "cuCtxGetCurrent", (Context * context))                                          \
    X(context_set_current, "cuCtxSetCurrent", (Context context))                                            \
    X(context_push, "cuCtxPushCurrent_v2", (Context context))                                               \
    X(context_pop, "cuCtxPopCurrent_v2", (Context * context))                                               \
    X(memory_get_info, "cuMemGetInfo_v2", (std::size_t * free, std::size_t * total))                        \
    X(memory_allocate, "cuMemAlloc_v2", (Address * address, std::size_t bytes))                             \
    X(memory_free, "cuMemFree_v2", (Address address))                                                       \
    X(host_register, "cuMemHostRegister_v2", (void* memory, std::size_t bytes, unsigned flags))             \
    X(host_unregister, "cuMemHostUnregister", (void* memory))                                               \
    X(host_get_device_address, "cuMemHostGetDevicePointer_v2",                                              \
      (Address * address, void* memory, unsigned flags))                                                    \
    X(copy_to_host, "cuMemcpyDtoHAsync_v2", (void* host, Address device, std::size_t bytes, Stream stream)) \
    X(copy_on_device, "cuMemcpyDtoDAsync_v2", (Address to, Address from, std::size_t bytes, Stream stream)) \
    X(stream_create, "cuStreamCreate", (Stream * stream, unsigned flags))                                   \
    X(stream_destroy, "cuStreamDestroy_v2", (Stream stream))                                                \
    X(stream_wait_event, "cuStreamWaitEvent", (Stream stream, Event event, unsigned flags))                 \
    X(stream_synchronize, "cuStreamSynchronize", (Stream stream))                                           \
    X(thread_exchange_capture_mode, "cuThreadExchangeStreamCaptureMode", (int* mode))                       \
    X(stream_is_capturing, "cuStreamIsCapturing", (Stream stream, int* status))                             \
    X(event_create, "cuEventCreate", (Event * event, unsigned flags))                                       \
    X(event_destroy, "cuEventDestroy_v2", (Event event))                                                    \
    X(event_record, "cuEventRecord", (Event event, Stream stream))                                          \
    X(event_query, "cuEventQuery", (Event event))                                                           \
    X(event_synchronize, "cuEventSynchronize", (Event event))                                               \
    X(event_elapsed_time, "cuEventElapsedTime", (float* milliseconds, Event start, Event end))              \
    X(module_load_data, "cuModuleLoadData", (Module * module, const void* image))                           \
    X(module_unload, "cuModuleUnload", (Module module))                                                     \
    X(module_get_function, "cuModuleGetFunction", (Function * function, Module module, const char* name))   \
    X(function_set_attribute, "cuFuncSetAttribute", (Function function, int attribute, int value))          \
    X(launch_kernel, "cuLaunchKernel",                                                                      \
      (Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,              \
       unsigned block_y, unsigned block_z, unsigned shared_bytes, Stream stream, void** parameters,         \
       void** extra))

struct Driver {
#define NSF_DECLARE(name, symbol, parameters) Result(*name) parameters = nullptr;
    NSF_CUDA_DRIVER_FUNCTIONS(NSF_DECLARE)
#undef NSF_DECLARE

    // The driver of this process: the library that NEUROSCOPE_FAST_CUDA_DRIVER names, else libcuda.so.1,
    // opened and initialised at the first call and never closed. Throws EngineError with the reason.
    static const Driver& get();

    // Throws EngineError("CUDA: cannot OPERATION: NAME (TEXT, error CODE)") unless the call went well.
    void check(Result result, const char* operation) const {
        if (result != success) fail(result, operation);
    }
    [[noreturn]] void fail(Result result, const char* operation) const;

    // For code that others ran in between: some leave another context current than they found.
    void make_current(Context context) const;

    std::string library;
    int version = 0;  // 1000 * major + 10 * minor of the CUDA version that the driver supports
};

// Makes a context the calling thread's own while it lives. Does nothing where it is that already.
class CurrentContext {
  public:
    CurrentContext(const Driver& driver, Context context);
    ~CurrentContext();
    CurrentContext(const CurrentContext&) = delete;
    CurrentContext& operator=(const CurrentContext&) = delete;

  private:
    const Driver& driver_;
    bool pushed_ = false;
};

// Lets the calling thread ask for events and wait for them while another thread captures a CUDA graph in global mode,
// as torch.cuda.graph() does: the capture would be broken by it otherwise. Our streams take part in no capture.
class BesideCaptures {
  public:
    explicit BesideCaptures(const Driver& driver) : driver_(driver) { exchange(); }
    ~BesideCaptures() { exchange(); }
    BesideCaptures(const BesideCaptures&) = delete;
    BesideCaptures& operator=(const BesideCaptures&) = delete;

  private:
    // Fails only where the driver is gone, and then the next call says so.
    void exchange() { static_cast<void>(driver_.thread_exchange_capture_mode(&mode_)); }

    const Driver& driver_;
    int mode_ = 2;  // relaxed; in between the thread's own
};

}  // namespace nsf::cuda
