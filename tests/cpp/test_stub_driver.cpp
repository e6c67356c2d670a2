// The stub driver itself: streams and events order work as the CUDA driver promises, and no better.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

#include "stub_driver/driver_fixture.hpp"

namespace nsf::stub {
namespace {

using namespace std::chrono_literals;

TEST_F(StubDriver, CopiesWhatAKernelOfTheSameStreamWrote) {
    ASSERT_OK(fill(device_, size, 7, compute_));
    ASSERT_OK(cuMemcpyDtoHAsync_v2(host_.data(), device_, size, compute_));
    ASSERT_OK(cuStreamSynchronize(compute_));
    EXPECT_TRUE(host_is(std::byte{7}));
    EXPECT_EQ(counters().dtoh_bytes, size);
    EXPECT_EQ(counters().unpinned(), 0U);
}

TEST_F(StubDriver, AnEventOrdersTwoStreams) {
    hold(Kind::kernel);
    ASSERT_OK(fill(device_, size, 7, compute_));
    ASSERT_OK(cuEventRecord(event_, compute_));
    ASSERT_OK(cuStreamWaitEvent(copies_, event_, 0));
    ASSERT_OK(cuMemcpyDtoHAsync_v2(host_.data(), device_, size, copies_));
    EXPECT_EQ(cuStreamQuery(copies_), code::not_ready);
    release();
    ASSERT_OK(cuStreamSynchronize(copies_));
    EXPECT_TRUE(host_is(std::byte{7}));
}

TEST_F(StubDriver, AForgottenWaitYieldsPoison) {
    hold(Kind::kernel);
    ASSERT_OK(fill(device_, size, 7, compute_));
    ASSERT_OK(cuEventRecord(event_, compute_));
    ASSERT_OK(cuMemcpyDtoHAsync_v2(host_.data(), device_, size, copies_));
    ASSERT_OK(cuStreamSynchronize(copies_));
    EXPECT_TRUE(host_is(poison));
    break_context(0, code::unknown);  // the kernel is not to run: ThreadSanitizer would rightly report a race
}

TEST_F(StubDriver, AWaitIsForTheRecordBeforeIt) {
    ASSERT_OK(cuEventRecord(event_, compute_));
    ASSERT_OK(cuStreamSynchronize(compute_));
    ASSERT_OK(cuStreamWaitEvent(copies_, event_, 0));
    hold(Kind::kernel);
    ASSERT_OK(fill(device_, size, 7, compute_));
    ASSERT_OK(cuEventRecord(event_, compute_));  // not what copies_ waits for
    EXPECT_OK(cuStreamSynchronize(copies_));
    EXPECT_EQ(cuEventQuery(event_), code::not_ready);
    release();
    EXPECT_OK(cuEventSynchronize(event_));
    EXPECT_OK(cuEventQuery(event_));
}

TEST_F(StubDriver, AWaitForAnEventThatWasNeverRecordedIsNothing) {
    EXPECT_OK(cuStreamWaitEvent(copies_, event_, 0));
    EXPECT_OK(cuStreamQuery(copies_));
    EXPECT_OK(cuEventQuery(event_));
    EXPECT_OK(cuEventSynchronize(event_));
    EXPECT_EQ(pending(copies_), 0U);
}

TEST_F(StubDriver, ADestroyedEventIsStillWaitedFor) {
    CUevent event = nullptr;
    ASSERT_OK(cuEventCreate(&event, event_disable_timing));
    hold(Kind::kernel);
    ASSERT_OK(fill(device_, size, 7, compute_));
    ASSERT_OK(cuEventRecord(event, compute_));
    ASSERT_OK(cuStreamWaitEvent(copies_, event, 0));
    ASSERT_OK(cuEventDestroy_v2(event));
    EXPECT_EQ(cuEventQuery(event), code::invalid_handle);
    ASSERT_OK(cuMemcpyDtoHAsync_v2(host_.data(), device_, size, copies_));
    EXPECT_EQ(cuStreamQuery(copies_), code::not_ready);
    release();
    ASSERT_OK(cuStreamSynchronize(copies_));
    EXPECT_TRUE(host_is(std::byte{7}));
}

TEST_F(StubDriver, ElapsedTimeNeedsTimedAndFinishedEvents) {
    CUevent start = nullptr, end = nullptr;
    ASSERT_OK(cuEventCreate(&start, 0));
    ASSERT_OK(cuEventCreate(&end, 0));
    float milliseconds = 0;
    EXPECT_EQ(cuEventElapsedTime(&milliseconds, start, end), code::invalid_handle);  // not recorded
    delay(Kind::kernel, 2ms, 2ms);
    ASSERT_OK(cuEventRecord(start, compute_));
    ASSERT_OK(cuEventSynchronize(start));
    hold(Kind::record);
    ASSERT_OK(fill(device_, size, 7, compute_));
    ASSERT_OK(cuEventRecord(end, compute_));
    ASSERT_OK(cuEventRecord(event_, compute_));
    EXPECT_EQ(cuEventElapsedTime(&milliseconds, start, end), code::not_ready);
    EXPECT_EQ(cuEventElapsedTime(&milliseconds, start, event_), code::invalid_handle);  // not timed
    release();
    ASSERT_OK(cuEventSynchronize(end));
    ASSERT_OK(cuEventElapsedTime(&milliseconds, start, end));
    EXPECT_GE(milliseconds, 2.0F);
    EXPECT_OK(cuEventDestroy_v2(start));
    EXPECT_OK(cuEventDestroy_v2(end));
}

TEST_F(StubDriver, ADestroyedStreamFinishesItsWork) {
    CUstream stream = nullptr;
    ASSERT_OK(cuStreamCreate(&stream, stream_non_blocking));
    hold(Kind::kernel);
    ASSERT_OK(fill(device_, size, 7, stream));
    ASSERT_OK(cuEventRecord(event_, stream));
    ASSERT_OK(cuStreamDestroy_v2(stream));
    EXPECT_EQ(cuStreamQuery(stream), code::invalid_handle);
    EXPECT_EQ(cuEventQuery(event_), code::not_ready);
    release();
    EXPECT_OK(cuEventSynchronize(event_));
    ASSERT_OK(cuMemcpyDtoHAsync_v2(host_.data(), device_, size, copies_));
    ASSERT_OK(cuStreamSynchronize(copies_));
    EXPECT_TRUE(host_is(std::byte{7}));
}

TEST_F(StubDriver, TheDefaultStreamWaitsForBlockingStreamsOnly) {
    CUstream blocking = nullptr;
    CUdeviceptr other = 0;
    ASSERT_OK(cuMemAlloc_v2(&other, size));
    ASSERT_OK(cuStreamCreate(&blocking, 0));
    hold_stream(blocking);
    hold_stream(compute_);
    ASSERT_OK(fill(device_, size, 1, blocking));
    ASSERT_OK(fill(device_, size, 2, nullptr));
    ASSERT_OK(fill(other, size, 3, compute_));
    EXPECT_EQ(cuStreamQuery(nullptr), code::not_ready);
    release_stream(blocking);  // compute_ is still held: the default stream does not wait for it
    EXPECT_OK(cuStreamSynchronize(nullptr));
    release_stream(compute_);
    ASSERT_OK(cuStreamSynchronize(compute_));

    hold_stream(nullptr);
    ASSERT_OK(fill(device_, size, 4, nullptr));
    ASSERT_OK(fill(device_, size, 5, blocking));
    ASSERT_OK(fill(other, size, 6, compute_));
    EXPECT_OK(cuStreamSynchronize(compute_));
    EXPECT_EQ(cuStreamQuery(blocking), code::not_ready);
    release_stream(nullptr);
    EXPECT_OK(cuStreamSynchronize(blocking));
    EXPECT_OK(cuStreamDestroy_v2(blocking));
    EXPECT_OK(cuMemFree_v2(other));
}

TEST_F(StubDriver, HoldsCanBeStepped) {
    hold(Kind::dtoh);
    for (int i = 0; i < 3; ++i) ASSERT_OK(cuMemcpyDtoHAsync_v2(host_.data(), device_, size, copies_));
    wait_until_held(Kind::dtoh);
    EXPECT_EQ(executed_count(Kind::dtoh), 0U);
    EXPECT_EQ(pending(copies_), 3U);
    step(Kind::dtoh, 2);
    wait_until_executed(Kind::dtoh, 2);
    wait_until_held_stream(copies_);
    EXPECT_EQ(executed_count(Kind::dtoh), 2U);
    EXPECT_EQ(pending(copies_), 1U);
}

TEST_F(StubDriver, ParametersAreCopiedByTheLaunch) {
    hold(Kind::kernel);
    {
        CUdeviceptr memory = device_;
        std::size_t count = size;
        std::uint8_t byte = 9;
        void* parameters[] = {&memory, &count, &byte};
        ASSERT_OK(cuLaunchKernel(fill_, 1, 1, 1, 32, 1, 1, 0, compute_, parameters, nullptr));
        memory = 0;
        count = 0;
        byte = 0;
    }
    release();
    ASSERT_OK(cuMemcpyDtoHAsync_v2(host_.data(), device_, size, compute_));
    ASSERT_OK(cuStreamSynchronize(compute_));
    EXPECT_TRUE(host_is(std::byte{9}));
}

TEST_F(StubDriver, CountsCopiesWithPageableMemory) {
    Bytes pageable(size, std::byte{5});
    ASSERT_OK(cuMemcpyHtoDAsync_v2(device_, pageable.data(), size, copies_));
    pageable.assign(size, std::byte{0});  // has been read
    ASSERT_OK(cuMemcpyDtoHAsync_v2(pageable.data(), device_, size, copies_));
    EXPECT_EQ(pageable, Bytes(size, std::byte{5}));  // has arrived
    EXPECT_EQ(counters().htod_unpinned, 1U);
    EXPECT_EQ(counters().dtoh_unpinned, 1U);
    ASSERT_OK(cuMemcpyHtoDAsync_v2(device_, host_.data(), size, copies_));
    EXPECT_EQ(counters().unpinned(), 2U);
}

TEST_F(StubDriver, LogsCallsAndOperations) {
    const std::uint64_t before = call_count();
    ASSERT_OK(fill(device_, size, 7, compute_));
    std::thread::id other;
    std::thread thread([&] {
        other = std::this_thread::get_id();
        EXPECT_EQ(cuStreamQuery(nullptr), code::invalid_context);
    });
    thread.join();
    ASSERT_OK(cuStreamSynchronize(compute_));
    const std::vector<Call> made = calls(before);
    ASSERT_EQ(made.size(), 3U);
    EXPECT_EQ(made[0].name, "cuLaunchKernel");
    EXPECT_EQ(made[1].name, "cuStreamQuery");
    EXPECT_EQ(made[1].thread, other);
    EXPECT_EQ(made[1].result, code::invalid_context);
    EXPECT_EQ(call_count("cuStreamCreate"), 2U);
    ASSERT_EQ(executed().size(), 1U);
    EXPECT_EQ(executed()[0].kind, Kind::kernel);
    EXPECT_EQ(executed()[0].kernel, "fill");
    EXPECT_EQ(executed()[0].stream, compute_);
}

// A pipeline of two streams, an event each way, and two slots that are used in turn.
class Pipeline : public StubDriver {
  protected:
    // Returns the order in which the operations ended.
    std::vector<const void*> run(int rounds) {
        constexpr std::size_t slots = 2;
        CUevent written[slots], read[slots];
        for (std::size_t i = 0; i < slots; ++i) {
            EXPECT_OK(cuEventCreate(&written[i], event_disable_timing));
            EXPECT_OK(cuEventCreate(&read[i], event_disable_timing));
        }
        const std::size_t first = executed().size();
        for (int round = 0; round < rounds; ++round) {
            const std::size_t slot = static_cast<std::size_t>(round) % slots;
            const std::size_t offset = slot * size / slots;
            std::byte* host = host_.data() + offset;
            if (round >= static_cast<int>(slots)) {
                EXPECT_OK(cuEventSynchronize(read[slot]));
                const auto expected = static_cast<std::byte>(round - static_cast<int>(slots));
                EXPECT_TRUE(
                    std::all_of(host, host + size / slots, [&](auto byte) { return byte == expected; }));
                EXPECT_OK(cuStreamWaitEvent(compute_, read[slot], 0));
            }
            EXPECT_OK(fill(device_ + offset, size / slots, static_cast<std::uint8_t>(round), compute_));
            EXPECT_OK(cuEventRecord(written[slot], compute_));
            EXPECT_OK(cuStreamWaitEvent(copies_, written[slot], 0));
            EXPECT_OK(cuMemcpyDtoHAsync_v2(host, device_ + offset, size / slots, copies_));
            EXPECT_OK(cuEventRecord(read[slot], copies_));
        }
        EXPECT_OK(cuStreamSynchronize(compute_));
        EXPECT_OK(cuStreamSynchronize(copies_));
        for (std::size_t i = 0; i < slots; ++i) {
            EXPECT_OK(cuEventDestroy_v2(written[i]));
            EXPECT_OK(cuEventDestroy_v2(read[i]));
        }
        std::vector<const void*> order;
        const std::vector<Executed> all = executed();
        for (std::size_t i = first; i < all.size(); ++i) order.push_back(all[i].stream);
        return order;
    }
};

TEST_F(Pipeline, IsRightAtFullSpeed) { run(200); }

TEST_F(Pipeline, IsRightUnderRandomDelays) {
    seed(1);
    delay(Kind::all, 0us, 200us);
    delay_stream(copies_, 0us, 400us);
    run(50);
}

TEST_F(Pipeline, ASeedGivesAnOrder) {
    reorder(1, 1h);
    const auto order = run(30);
    reorder(1, 1h);
    EXPECT_EQ(run(30), order);
    int different = 0;
    for (std::uint64_t other = 2; other < 6; ++other) {
        reorder(other, 1h);
        different += run(30) != order;
    }
    EXPECT_GT(different, 0);
}

TEST_F(StubDriver, ManyThreadsAndStreams) {
    constexpr int threads = 4, rounds = 50;
    seed(2);
    delay(Kind::copy, 0us, 20us);
    std::vector<std::thread> running;
    for (int i = 0; i < threads; ++i) {
        running.emplace_back([&, i] {
            EXPECT_OK(cuCtxPushCurrent_v2(context_));
            CUstream first = nullptr, second = nullptr;
            CUevent event = nullptr;
            CUdeviceptr memory = 0;
            Bytes host(64);
            EXPECT_OK(cuStreamCreate(&first, stream_non_blocking));
            EXPECT_OK(cuStreamCreate(&second, 0));
            EXPECT_OK(cuEventCreate(&event, event_disable_timing));
            EXPECT_OK(cuMemAlloc_v2(&memory, host.size()));
            EXPECT_OK(cuMemHostRegister_v2(host.data(), host.size(), 0));
            for (int round = 0; round < rounds; ++round) {
                const auto byte = static_cast<std::uint8_t>(16 * i + round % 16);
                EXPECT_OK(fill(memory, host.size(), byte, first));
                EXPECT_OK(cuEventRecord(event, first));
                EXPECT_OK(cuStreamWaitEvent(second, event, 0));
                EXPECT_OK(cuMemcpyDtoHAsync_v2(host.data(), memory, host.size(), second));
                EXPECT_OK(cuEventRecord(event, second));
                while (cuEventQuery(event) == code::not_ready) std::this_thread::yield();
                EXPECT_EQ(host, Bytes(host.size(), static_cast<std::byte>(byte)));
            }
            EXPECT_OK(cuMemHostUnregister(host.data()));
            EXPECT_OK(cuMemFree_v2(memory));
            EXPECT_OK(cuEventDestroy_v2(event));
            EXPECT_OK(cuStreamDestroy_v2(second));
            EXPECT_OK(cuStreamDestroy_v2(first));
            EXPECT_OK(cuCtxPopCurrent_v2(nullptr));
        });
    }
    for (std::thread& thread : running) thread.join();
}

TEST_F(StubDriver, TheSameLibraryOpenedByNameIsTheSameDriver) {
    void* library = dlopen(NSF_STUB_CUDA_PATH, RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(library, nullptr) << dlerror();
    const auto get_count = reinterpret_cast<CUresult (*)(int*)>(dlsym(library, "cuDeviceGetCount"));
    ASSERT_NE(get_count, nullptr);
    set_device_count(5);
    int count = 0;
    EXPECT_OK(get_count(&count));
    EXPECT_EQ(count, 5);
    dlclose(library);
}

}  // namespace
}  // namespace nsf::stub
