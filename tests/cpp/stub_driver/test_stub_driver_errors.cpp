// The stub driver itself: what it refuses, what it tells afterwards, and the failures that a test asks for.
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "child_process.hpp"
#include "stub_driver/driver_fixture.hpp"

namespace nsf::stub {
namespace {

TEST_F(StubDriver, RefusesWhatTheDriverRefusesToLaunch) {
    CUfunction function = nullptr;
    CUmodule module = nullptr;
    EXPECT_EQ(cuModuleLoadData(&module,
                               "\x7f"
                               "ELF"),
              code::invalid_image);
    EXPECT_EQ(cuModuleGetFunction(&function, module_, "nobody"), code::not_found);  // in the image only
    EXPECT_EQ(cuModuleGetFunction(&function, module_, "absent"), code::not_found);
    const auto launch = [&](unsigned grid, unsigned block, unsigned shared) {
        std::size_t count = 1;
        std::uint8_t byte = 1;
        void* parameters[] = {&device_, &count, &byte};
        return cuLaunchKernel(fill_, grid, 1, 1, block, 1, 1, shared, compute_, parameters, nullptr);
    };
    EXPECT_OK(launch(1, 1024, 48 * 1024));
    EXPECT_EQ(launch(0, 32, 0), code::invalid_value);
    EXPECT_EQ(launch(1, 1025, 0), code::invalid_value);
    EXPECT_EQ(launch(1, 32, 48 * 1024 + 1), code::invalid_value);
    EXPECT_EQ(cuFuncSetAttribute(fill_, function_max_dynamic_shared, 232449), code::invalid_value);
    EXPECT_OK(cuFuncSetAttribute(fill_, function_max_dynamic_shared, 100 * 1024));
    EXPECT_OK(launch(1, 32, 100 * 1024));
    EXPECT_EQ(cuLaunchKernel(fill_, 1, 1, 1, 1, 1, 1, 0, compute_, nullptr, nullptr), code::invalid_value);
}

TEST_F(StubDriver, AKernelThatLeavesItsMemoryLosesTheContext) {
    ASSERT_OK(fill(device_, size + 1, 7, compute_));
    EXPECT_EQ(cuStreamSynchronize(compute_), code::illegal_address);
    EXPECT_EQ(cuEventRecord(event_, compute_), code::illegal_address);
    CUdeviceptr more = 0;
    EXPECT_EQ(cuMemAlloc_v2(&more, 1), code::illegal_address);
}

TEST_F(StubDriver, AKernelThatThrowsLosesTheContext) {
    CUfunction function = nullptr;
    ASSERT_OK(cuModuleGetFunction(&function, module_, "throw"));
    ASSERT_OK(cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, compute_, nullptr, nullptr));
    EXPECT_EQ(cuStreamSynchronize(compute_), code::launch_failed);
}

TEST_F(StubDriver, ChecksTheEndsOfCopies) {
    CUdeviceptr other = 0;
    ASSERT_OK(cuMemAlloc_v2(&other, size));
    EXPECT_EQ(cuMemcpyDtoHAsync_v2(host_.data(), device_ + 1, size, copies_), code::invalid_value);
    EXPECT_EQ(cuMemcpyDtoHAsync_v2(host_.data(), device_ - 1, 1, copies_), code::invalid_value);
    EXPECT_EQ(cuMemcpyDtoHAsync_v2(host_.data() + 1, device_, size, copies_),
              code::invalid_value);  // half pinned
    EXPECT_EQ(cuMemcpyDtoHAsync_v2(reinterpret_cast<void*>(other), device_, size, copies_),
              code::invalid_value);
    EXPECT_EQ(cuMemcpyDtoDAsync_v2(device_, device_ + 8, 16, copies_), code::invalid_value);  // overlapping
    EXPECT_EQ(
        cuMemcpyDtoHAsync_v2(host_.data(), device_, size, event_ == nullptr ? nullptr : CUstream(event_)),
        code::invalid_handle);
    EXPECT_OK(cuMemcpyDtoHAsync_v2(host_.data(), device_ + size - 1, 1, copies_));
    EXPECT_OK(cuMemcpyDtoHAsync_v2(host_.data(), device_, 0, copies_));
    EXPECT_OK(cuMemFree_v2(other));
    EXPECT_EQ(cuMemFree_v2(other), code::invalid_value);
    EXPECT_EQ(cuMemcpyDtoHAsync_v2(host_.data(), other, 1, copies_), code::invalid_value);
    EXPECT_EQ(cuMemFree_v2(device_ + 256), code::invalid_value);
}

TEST_F(StubDriver, MemoryFreedTooEarlyIsToldAndLosesTheContext) {
    CUdeviceptr memory = 0;
    ASSERT_OK(cuMemAlloc_v2(&memory, 64));
    hold(Kind::dtoh);
    ASSERT_OK(cuMemcpyDtoHAsync_v2(host_.data(), memory, 64, copies_));
    EXPECT_OK(cuMemFree_v2(memory));
    release();
    EXPECT_EQ(cuStreamSynchronize(copies_), code::illegal_address);
    expected_ = {"cuMemFree of 64 bytes that 1 unfinished operations use"};
}

TEST_F(StubDriver, MemoryUnregisteredTooEarlyIsToldAndLosesTheContext) {
    Bytes other(64);
    ASSERT_OK(cuMemHostRegister_v2(other.data(), 64, 0));
    hold(Kind::dtoh);
    ASSERT_OK(cuMemcpyDtoHAsync_v2(other.data(), device_, 64, copies_));
    EXPECT_OK(cuMemHostUnregister(other.data()));
    release();
    EXPECT_EQ(cuStreamSynchronize(copies_), code::illegal_address);
    EXPECT_EQ(other, Bytes(64));
    expected_ = {"cuMemHostUnregister of memory that 1 unfinished operations use"};
}

#if !defined(__SANITIZE_ADDRESS__)  // which catches it by itself
TEST_F(StubDriver, ADamagedGuardZoneIsTold) {
    CUdeviceptr memory = 0;
    ASSERT_OK(cuMemAlloc_v2(&memory, 60));
    *reinterpret_cast<volatile char*>(memory + 60) = 1;
    EXPECT_OK(cuMemFree_v2(memory));
    expected_ = {"the guard zone of an allocation of 60 bytes was written to"};
}
#endif

TEST_F(StubDriver, RegistersHostMemoryOnceAndWithinLimits) {
    EXPECT_EQ(cuMemHostRegister_v2(host_.data() + 8, 8, 0), code::host_memory_already_registered);
    EXPECT_EQ(cuMemHostUnregister(host_.data() + 8), code::host_memory_not_registered);
    Bytes other(size);
    EXPECT_EQ(cuMemHostRegister_v2(other.data(), 0, 0), code::invalid_value);
    EXPECT_EQ(cuMemHostRegister_v2(reinterpret_cast<void*>(8), 8, 0), code::invalid_value);  // not mapped
    set_lockable_bytes(2 * size - 1);
    EXPECT_EQ(cuMemHostRegister_v2(other.data(), size, 0), code::out_of_memory);
    EXPECT_OK(cuMemHostRegister_v2(other.data(), size - 1, 0));
    CUdeviceptr address = 0;
    EXPECT_EQ(cuMemHostGetDevicePointer_v2(&address, other.data(), 0), code::invalid_value);  // not mapped
    EXPECT_OK(cuMemHostGetDevicePointer_v2(&address, host_.data(), 0));
    EXPECT_EQ(counters().registered_bytes, 2 * size - 1);
    EXPECT_OK(cuMemHostUnregister(other.data()));
    ASSERT_OK(fill(address, size, 3, compute_));  // a kernel may write to mapped host memory
    ASSERT_OK(cuStreamSynchronize(compute_));
    EXPECT_TRUE(host_is(std::byte{3}));
}

TEST_F(StubDriver, DeviceMemoryIsLimited) {
    set_memory(3 * size, 4 * size);
    std::size_t free = 0, total = 0;
    ASSERT_OK(cuMemGetInfo_v2(&free, &total));
    EXPECT_EQ(free, 2 * size);
    EXPECT_EQ(total, 4 * size);
    CUdeviceptr memory = 0;
    EXPECT_EQ(cuMemAlloc_v2(&memory, 2 * size + 1), code::out_of_memory);
    EXPECT_EQ(cuMemAlloc_v2(&memory, 0), code::invalid_value);
    ASSERT_OK(cuMemAlloc_v2(&memory, 2 * size));
    EXPECT_EQ(memory % 256, 0U);
    EXPECT_OK(cuMemFree_v2(memory));
    EXPECT_EQ(counters().allocated_bytes, size);
}

TEST_F(StubDriver, NothingWorksWithoutAContext) {
    CUstream stream = nullptr;
    CUresult created = 0;
    CUcontext current = context_;
    std::thread([&] {
        created = cuStreamCreate(&stream, 0);
        cuCtxGetCurrent(&current);
    }).join();
    EXPECT_EQ(created, code::invalid_context);
    EXPECT_EQ(current, nullptr);
    EXPECT_EQ(cuCtxPushCurrent_v2(reinterpret_cast<CUcontext>(this)), code::invalid_context);
}

TEST_F(StubDriver, HandlesBelongToTheirContext) {
    set_device_count(2);
    CUcontext second = nullptr, popped = nullptr;
    ASSERT_OK(cuDevicePrimaryCtxRetain(&second, 1));
    EXPECT_NE(second, context_);
    ASSERT_OK(cuCtxPushCurrent_v2(second));
    EXPECT_EQ(cuStreamSynchronize(compute_), code::invalid_handle);
    EXPECT_EQ(cuEventRecord(event_, nullptr), code::invalid_handle);
    EXPECT_EQ(fill(device_, 1, 1, nullptr), code::invalid_handle);
    EXPECT_EQ(cuMemFree_v2(device_), code::invalid_value);
    EXPECT_EQ(cuMemcpyDtoHAsync_v2(host_.data(), device_, size, nullptr), code::invalid_value);
    EXPECT_EQ(cuEventDestroy_v2(event_), code::invalid_handle);
    // An event of another device may be waited for.
    CUstream stream = nullptr;
    ASSERT_OK(cuStreamCreate(&stream, stream_non_blocking));
    EXPECT_OK(cuStreamWaitEvent(stream, event_, 0));
    EXPECT_OK(cuEventQuery(event_));
    ASSERT_OK(cuStreamDestroy_v2(stream));
    ASSERT_OK(cuCtxPopCurrent_v2(&popped));
    EXPECT_EQ(popped, second);
    EXPECT_OK(cuDevicePrimaryCtxRelease_v2(1));
    EXPECT_EQ(cuDevicePrimaryCtxRelease_v2(1), code::invalid_context);
    EXPECT_EQ(cuCtxPushCurrent_v2(second), code::invalid_context);
}

TEST_F(StubDriver, ReleasingTheLastReferenceDestroysWhatIsLeft) {
    set_device_count(2);
    CUcontext second = nullptr;
    ASSERT_OK(cuDevicePrimaryCtxRetain(&second, 1));
    ASSERT_OK(cuCtxPushCurrent_v2(second));
    CUstream stream = nullptr;
    CUdeviceptr memory = 0;
    ASSERT_OK(cuStreamCreate(&stream, stream_non_blocking));
    ASSERT_OK(cuMemAlloc_v2(&memory, 64));
    hold(Kind::copy);
    ASSERT_OK(cuMemcpyDtoDAsync_v2(memory, memory + 32, 32, stream));
    ASSERT_OK(cuDevicePrimaryCtxRelease_v2(1));
    EXPECT_EQ(cuStreamQuery(stream), code::context_is_destroyed);
    ASSERT_OK(cuCtxPopCurrent_v2(nullptr));
    expected_ = {"the context of device 1 was released with a stream in it",
                 "the context of device 1 was released with 1 allocations in it"};
}

TEST_F(StubDriver, ACallCanBeMadeToFail) {
    fail_call(2, code::unknown);
    fail_call(1, code::out_of_memory, "cuMemAlloc_v2");
    EXPECT_OK(cuStreamQuery(compute_));
    const char* name = nullptr;
    EXPECT_OK(cuGetErrorName(code::out_of_memory, &name));  // does not count
    EXPECT_STREQ(name, "CUDA_ERROR_OUT_OF_MEMORY");
    EXPECT_EQ(failures_left(), 2U);
    EXPECT_EQ(cuStreamQuery(compute_), code::unknown);
    EXPECT_OK(cuStreamQuery(compute_));
    CUdeviceptr memory = 0;
    EXPECT_EQ(cuMemAlloc_v2(&memory, 8), code::out_of_memory);
    EXPECT_EQ(memory, 0U);
    EXPECT_EQ(failures_left(), 0U);
}

TEST_F(StubDriver, AnOperationCanBeMadeToLoseTheContext) {
    fail_asynchronously(2, 214);
    ASSERT_OK(fill(device_, size, 7, compute_));
    ASSERT_OK(cuStreamSynchronize(compute_));
    hold(Kind::copy);
    ASSERT_OK(cuMemcpyDtoHAsync_v2(host_.data(), device_, size, compute_));
    ASSERT_OK(cuEventRecord(event_, compute_));
    ASSERT_OK(cuStreamWaitEvent(copies_, event_, 0));
    release();
    EXPECT_EQ(cuEventSynchronize(event_), 214);
    EXPECT_EQ(cuStreamSynchronize(copies_), 214);  // what waited came to an end
    EXPECT_EQ(cuStreamQuery(compute_), 214);
    EXPECT_TRUE(host_is(std::byte{0}));
    EXPECT_EQ(executed_count(Kind::copy), 0U);
}

TEST_F(StubDriver, ALostContextEndsTheWaitOfAThread) {
    hold(Kind::kernel);
    ASSERT_OK(fill(device_, size, 7, compute_));
    CUresult result = 0;
    std::thread waiter([&] {
        EXPECT_OK(cuCtxPushCurrent_v2(context_));
        result = cuStreamSynchronize(compute_);
        EXPECT_OK(cuCtxPopCurrent_v2(nullptr));
    });
    wait_until_held(Kind::kernel);
    break_context(0, code::illegal_address);
    waiter.join();
    EXPECT_EQ(result, code::illegal_address);
}

TEST_F(StubDriver, ACapturingStreamExecutesNothing) {
    set_capturing(compute_, true);
    int status = -1;
    ASSERT_OK(cuStreamIsCapturing(compute_, &status));
    EXPECT_EQ(status, capture_status_active);
    ASSERT_OK(cuStreamIsCapturing(copies_, &status));
    EXPECT_EQ(status, 0);
    ASSERT_OK(fill(device_, size, 7, compute_));
    ASSERT_OK(cuEventRecord(event_, compute_));
    EXPECT_EQ(counters().captured, 2U);
    EXPECT_EQ(cuStreamSynchronize(compute_), code::capture_unsupported);
    EXPECT_EQ(cuStreamWaitEvent(copies_, event_, 0), code::capture_isolation);
    EXPECT_EQ(cuEventQuery(event_), code::captured_event);
    set_capturing(compute_, false);
    EXPECT_EQ(executed_count(), 0U);
}

TEST_F(StubDriver, AForkedChildHasNoDriver) {
    const std::string failure = testing_support::run_in_child([&](auto& child) {
        int count = 0;
        const char* name = nullptr;
        child.check(cuInit(0) == code::not_initialized, "cuInit");
        child.check(cuDeviceGetCount(&count) == code::not_initialized, "cuDeviceGetCount");
        child.check(cuStreamSynchronize(compute_) == code::not_initialized, "cuStreamSynchronize");
        child.check(cuGetErrorName(code::not_initialized, &name) == 0, "cuGetErrorName");
    });
    EXPECT_EQ(failure, "");
}

TEST(StubDriverState, TheLastErrorOfAllIsDeinitialized) {
    reset();
    ASSERT_OK(cuInit(0));
    CUcontext context = nullptr;
    ASSERT_OK(cuDevicePrimaryCtxRetain(&context, 0));
    ASSERT_OK(cuCtxPushCurrent_v2(context));
    CUdeviceptr memory = 0;
    ASSERT_OK(cuMemAlloc_v2(&memory, 64));
    hold(Kind::dtod);
    ASSERT_OK(cuMemcpyDtoDAsync_v2(memory, memory + 32, 32, nullptr));
    CUresult result = 0;
    std::thread waiter([&] {
        cuCtxPushCurrent_v2(context);
        result = cuStreamSynchronize(nullptr);
    });
    wait_until_held(Kind::dtod);
    deinitialise();
    waiter.join();
    EXPECT_EQ(result, code::deinitialized);
    EXPECT_EQ(cuStreamSynchronize(nullptr), code::deinitialized);
    EXPECT_EQ(cuMemFree_v2(memory), code::deinitialized);
    EXPECT_EQ(reset(), std::vector<std::string>());
    EXPECT_OK(cuInit(0));
}

TEST(StubDriverState, NeedsADeviceAndAnInitialisation) {
    reset();
    uninitialise();
    int count = 0;
    EXPECT_EQ(cuDeviceGetCount(&count), code::not_initialized);
    set_device_count(0);
    EXPECT_EQ(cuInit(0), code::no_device);
    EXPECT_EQ(cuDeviceGetCount(&count), code::not_initialized);
    EXPECT_EQ(cuInit(1), code::invalid_value);
    set_device_count(2);
    ASSERT_OK(cuInit(0));
    ASSERT_OK(cuDeviceGetCount(&count));
    EXPECT_EQ(count, 2);
    CUdevice device = -1;
    EXPECT_OK(cuDeviceGet(&device, 1));
    EXPECT_EQ(cuDeviceGet(&device, 2), code::invalid_device);
    char name[16];
    EXPECT_OK(cuDeviceGetName(name, sizeof name, 1));
    EXPECT_STREQ(name, "Stub GPU 1");
    set_attribute(75, 8);
    int major = 0;
    EXPECT_OK(cuDeviceGetAttribute(&major, 75, 0));
    EXPECT_EQ(major, 8);
    reset();
}

TEST(StubDriverState, ResetTellsWhatIsLeft) {
    reset();
    ASSERT_OK(cuInit(0));
    CUcontext context = nullptr;
    CUstream stream = nullptr;
    CUevent event = nullptr;
    CUmodule module = nullptr;
    CUdeviceptr memory = 0;
    Bytes host(64);
    ASSERT_OK(cuDevicePrimaryCtxRetain(&context, 0));
    ASSERT_OK(cuCtxPushCurrent_v2(context));
    ASSERT_OK(cuStreamCreate(&stream, 0));
    ASSERT_OK(cuEventCreate(&event, 0));
    ASSERT_OK(cuModuleLoadData(&module, "stub\n"));
    ASSERT_OK(cuMemAlloc_v2(&memory, 64));
    ASSERT_OK(cuMemHostRegister_v2(host.data(), 64, 0));
    hold(Kind::copy);
    ASSERT_OK(cuMemcpyDtoHAsync_v2(host.data(), memory, 64, stream));
    const std::vector<std::string> expected = {"a stream on device 0 with 1 unfinished operations",
                                               "an event on device 0",
                                               "a module on device 0",
                                               "a registration of 64 bytes",
                                               "an allocation of 64 bytes on device 0",
                                               "the primary context on device 0, retained 1 times",
                                               "1 contexts on the stacks of threads"};
    EXPECT_EQ(reset(), expected);
    EXPECT_EQ(host, Bytes(64));  // what was queued is gone
    EXPECT_EQ(reset(), std::vector<std::string>());
    EXPECT_EQ(cuCtxPopCurrent_v2(nullptr), code::invalid_context);
}

}  // namespace
}  // namespace nsf::stub
