// The part of the CUDA driver's binary interface that the stub exports, declared here so that no CUDA header is
// needed. In a namespace: a file may include this and the engine's own declarations.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nsf::stub {

using CUresult = int;
using CUdevice = int;
using CUdeviceptr = std::uint64_t;
using CUcontext = struct CUctx_st*;
using CUstream = struct CUstream_st*;
using CUevent = struct CUevent_st*;
using CUmodule = struct CUmod_st*;
using CUfunction = struct CUfunc_st*;

namespace code {
inline constexpr CUresult success = 0;
inline constexpr CUresult invalid_value = 1;
inline constexpr CUresult out_of_memory = 2;
inline constexpr CUresult not_initialized = 3;
inline constexpr CUresult deinitialized = 4;
inline constexpr CUresult no_device = 100;
inline constexpr CUresult invalid_device = 101;
inline constexpr CUresult invalid_image = 200;
inline constexpr CUresult invalid_context = 201;
inline constexpr CUresult invalid_handle = 400;
inline constexpr CUresult not_found = 500;
inline constexpr CUresult not_ready = 600;
inline constexpr CUresult illegal_address = 700;
inline constexpr CUresult context_is_destroyed = 709;
inline constexpr CUresult host_memory_already_registered = 712;
inline constexpr CUresult host_memory_not_registered = 713;
inline constexpr CUresult launch_failed = 719;
inline constexpr CUresult not_supported = 801;
inline constexpr CUresult capture_unsupported = 900;
inline constexpr CUresult capture_isolation = 905;
inline constexpr CUresult captured_event = 907;
inline constexpr CUresult unknown = 999;
}  // namespace code

inline constexpr unsigned stream_non_blocking = 1;
inline constexpr unsigned event_disable_timing = 2;
inline constexpr unsigned register_portable = 1;
inline constexpr unsigned register_device_map = 2;
inline constexpr int function_max_dynamic_shared = 8;
inline constexpr int capture_status_active = 1;

}  // namespace nsf::stub

#define NSF_STUB_EXPORT __attribute__((visibility("default")))

extern "C" {
namespace nsf::stub {

NSF_STUB_EXPORT CUresult cuInit(unsigned flags);
NSF_STUB_EXPORT CUresult cuDriverGetVersion(int* version);
NSF_STUB_EXPORT CUresult cuGetErrorName(CUresult error, const char** text);
NSF_STUB_EXPORT CUresult cuGetErrorString(CUresult error, const char** text);

NSF_STUB_EXPORT CUresult cuDeviceGet(CUdevice* device, int ordinal);
NSF_STUB_EXPORT CUresult cuDeviceGetCount(int* count);
NSF_STUB_EXPORT CUresult cuDeviceGetName(char* name, int size, CUdevice device);
NSF_STUB_EXPORT CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice device);
NSF_STUB_EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device);
NSF_STUB_EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device);
NSF_STUB_EXPORT CUresult cuCtxGetCurrent(CUcontext* context);
NSF_STUB_EXPORT CUresult cuCtxSetCurrent(CUcontext context);
NSF_STUB_EXPORT CUresult cuCtxPushCurrent_v2(CUcontext context);
NSF_STUB_EXPORT CUresult cuCtxPopCurrent_v2(CUcontext* context);

NSF_STUB_EXPORT CUresult cuMemGetInfo_v2(std::size_t* free, std::size_t* total);
NSF_STUB_EXPORT CUresult cuMemAlloc_v2(CUdeviceptr* address, std::size_t bytes);
NSF_STUB_EXPORT CUresult cuMemFree_v2(CUdeviceptr address);
NSF_STUB_EXPORT CUresult cuMemHostRegister_v2(void* begin, std::size_t bytes, unsigned flags);
NSF_STUB_EXPORT CUresult cuMemHostUnregister(void* begin);
NSF_STUB_EXPORT CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* address, void* host, unsigned flags);
NSF_STUB_EXPORT CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, std::size_t bytes, CUstream stream);
NSF_STUB_EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, std::size_t bytes,
                                              CUstream stream);
NSF_STUB_EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, std::size_t bytes,
                                              CUstream stream);

NSF_STUB_EXPORT CUresult cuStreamCreate(CUstream* stream, unsigned flags);
NSF_STUB_EXPORT CUresult cuStreamDestroy_v2(CUstream stream);
NSF_STUB_EXPORT CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags);
NSF_STUB_EXPORT CUresult cuStreamSynchronize(CUstream stream);
NSF_STUB_EXPORT CUresult cuStreamQuery(CUstream stream);
NSF_STUB_EXPORT CUresult cuStreamIsCapturing(CUstream stream, int* status);
NSF_STUB_EXPORT CUresult cuThreadExchangeStreamCaptureMode(int* mode);

NSF_STUB_EXPORT CUresult cuEventCreate(CUevent* event, unsigned flags);
NSF_STUB_EXPORT CUresult cuEventDestroy_v2(CUevent event);
NSF_STUB_EXPORT CUresult cuEventRecord(CUevent event, CUstream stream);
NSF_STUB_EXPORT CUresult cuEventQuery(CUevent event);
NSF_STUB_EXPORT CUresult cuEventSynchronize(CUevent event);
NSF_STUB_EXPORT CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end);

NSF_STUB_EXPORT CUresult cuModuleLoadData(CUmodule* module, const void* image);
NSF_STUB_EXPORT CUresult cuModuleUnload(CUmodule module);
NSF_STUB_EXPORT CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name);
NSF_STUB_EXPORT CUresult cuFuncSetAttribute(CUfunction function, int attribute, int value);
NSF_STUB_EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y,
                                        unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
                                        unsigned shared_bytes, CUstream stream, void** parameters,
                                        void** extra);

}  // namespace nsf::stub
}  // extern "C"
