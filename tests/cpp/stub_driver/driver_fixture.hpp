// A process with one device of the stub driver, for the tests of the stub itself.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "stub_driver/cuda_abi.hpp"
#include "stub_driver/stub_control.hpp"

namespace nsf::stub {

using Bytes = std::vector<std::byte>;

#define EXPECT_OK(expression) EXPECT_EQ((expression), code::success)
#define ASSERT_OK(expression) ASSERT_EQ((expression), code::success)

constexpr std::size_t size = 4096;

// The primary context is current, and at the end nothing may be left over.
class StubDriver : public testing::Test {
  protected:
    void SetUp() override {
        reset();
        ASSERT_OK(cuInit(0));
        ASSERT_OK(cuDevicePrimaryCtxRetain(&context_, 0));
        ASSERT_OK(cuCtxPushCurrent_v2(context_));
        register_kernel(
            "fill", {pointer, value<std::size_t>(), value<std::uint8_t>()}, [](const Launch& launch) {
                const auto count = launch.get<std::size_t>(1);
                std::memset(launch.array<std::byte>(0, count), launch.get<std::uint8_t>(2), count);
            });
        register_kernel("throw", {}, [](const Launch&) { throw std::runtime_error("a kernel's bug"); });
        ASSERT_OK(cuModuleLoadData(&module_, "stub\nfill\nthrow\nnobody\n"));
        ASSERT_OK(cuModuleGetFunction(&fill_, module_, "fill"));
        ASSERT_OK(cuStreamCreate(&compute_, stream_non_blocking));
        ASSERT_OK(cuStreamCreate(&copies_, stream_non_blocking));
        ASSERT_OK(cuEventCreate(&event_, event_disable_timing));
        ASSERT_OK(cuMemAlloc_v2(&device_, size));
        ASSERT_OK(cuMemHostRegister_v2(host_.data(), size, register_portable | register_device_map));
    }

    // Unless the test has lost the context, everything can be given back, and nothing was done wrong.
    void TearDown() override {
        release();
        release_stream(compute_);
        release_stream(copies_);
        const CUresult drained = cuStreamSynchronize(compute_);
        cuStreamSynchronize(copies_);
        for (const CUresult result :
             {cuStreamDestroy_v2(compute_), cuStreamDestroy_v2(copies_), cuEventDestroy_v2(event_),
              cuModuleUnload(module_), cuMemHostUnregister(host_.data()), cuMemFree_v2(device_)}) {
            EXPECT_EQ(result, drained);
        }
        EXPECT_OK(cuCtxPopCurrent_v2(nullptr));
        EXPECT_OK(cuDevicePrimaryCtxRelease_v2(0));
        EXPECT_EQ(reset(), expected_);
    }

    CUresult fill(CUdeviceptr memory, std::size_t count, std::uint8_t byte, CUstream stream) {
        void* parameters[] = {&memory, &count, &byte};
        return cuLaunchKernel(fill_, 1, 1, 1, 32, 1, 1, 0, stream, parameters, nullptr);
    }
    bool host_is(std::byte value) const {
        return std::all_of(host_.begin(), host_.end(), [&](std::byte byte) { return byte == value; });
    }

    CUcontext context_ = nullptr;
    CUmodule module_ = nullptr;
    CUfunction fill_ = nullptr;
    CUstream compute_ = nullptr, copies_ = nullptr;
    CUevent event_ = nullptr;
    CUdeviceptr device_ = 0;
    Bytes host_ = Bytes(size);
    std::vector<std::string> expected_;  // from reset() at the end
};

}  // namespace nsf::stub
