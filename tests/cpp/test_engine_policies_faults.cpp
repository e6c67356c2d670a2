// What the engine does while the ring is full. The writer is held in its first write for as long as it takes.
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "core/engine.hpp"
#include "engine_fixture.hpp"
#include "fault_injection.hpp"
#include "gate.hpp"

namespace nsf {
namespace {

using testing_support::Capture;
using testing_support::engine_error;
using testing_support::Faults;
using testing_support::Gate;
using testing_support::InjectFaults;
using testing_support::is_file;
using testing_support::Place;
using testing_support::small_options;
using testing_support::Verdict;

// Every write into a shard waits at the gate.
Faults writes_wait_at(Gate& gate) {
    Faults hooks;
    hooks.pwrite = [&gate](int descriptor, std::size_t, off_t) {
        if (is_file(descriptor, ".partial")) gate.pass();
        return Verdict::pass();
    };
    return hooks;
}

EngineOptions with_policy(Overflow overflow, std::size_t blocks) {
    EngineOptions options = small_options(blocks);
    options.overflow = overflow;
    return options;
}

TEST(EnginePoliciesFaults, BlockWaitsAndLosesNothing) {
    Gate gate;
    const InjectFaults faults(writes_wait_at(gate));
    Capture capture(Place::direct, with_policy(Overflow::block, 2));
    std::thread producer([&] {
        for (int i = 0; i < 5; ++i) capture.submit(DType::u8, {3000});
    });
    gate.wait_for_visitor();
    gate.open();
    producer.join();
    capture.close_and_compare();
    EXPECT_EQ(capture.engine->stats().drops, 0U);
}

// As many threads as there may be wait for one block: they take turns and all get through.
TEST(EnginePoliciesFaults, SeveralThreadsWait) {
    Gate gate;
    const InjectFaults faults(writes_wait_at(gate));
    Capture capture(Place::direct, with_policy(Overflow::block, 1));
    const testing_support::OwnedTensor tensor =
        testing_support::contiguous_tensor(capture.random, DType::u8, {6000});
    std::vector<std::thread> producers;
    for (std::uint32_t i = 0; i < 4; ++i) {
        const Origin origin{0, i, 0, 0};
        testing_support::expect_stored(capture.expected, capture.engine->streams()[0], origin,
                                       testing_support::keep_all(tensor.view), DType::u8);
        producers.emplace_back([&, origin] {
            capture.engine->submit(origin, testing_support::keep_all(tensor.view), DType::u8);
        });
    }
    gate.wait_for_visitor();
    gate.open();
    for (std::thread& producer : producers) producer.join();
    capture.close_and_compare();
}

TEST(EnginePoliciesFaults, DropLeavesOutWhatHasNoRoomAndSaysSo) {
    Gate gate;
    const InjectFaults faults(writes_wait_at(gate));
    Capture capture(Place::direct, with_policy(Overflow::drop, 3));
    EXPECT_TRUE(capture.try_submit(DType::u8, {4096}));
    gate.wait_for_visitor();
    EXPECT_TRUE(capture.try_submit(DType::u8, {4096}));
    EXPECT_TRUE(capture.try_submit(DType::u8, {3000}));
    EXPECT_TRUE(capture.try_submit(DType::u8, {96}));     // there is room in the lane's block
    EXPECT_FALSE(capture.try_submit(DType::u8, {1001}));  // but not for this
    EXPECT_FALSE(capture.try_submit(DType::u8, {1}));     // and now that block has been handed over
    EXPECT_FALSE(capture.try_submit(DType::f32, {0}));
    const std::vector<DroppedRecord> dropped = capture.engine->dropped();
    ASSERT_EQ(dropped.size(), 3U);
    for (std::uint32_t i = 0; i < 3; ++i) EXPECT_EQ(dropped[i].step, 4 + i);
    gate.open();
    while (!capture.try_submit(DType::f32, {10})) std::this_thread::yield();
    capture.close_and_compare();
    EXPECT_EQ(capture.engine->stats().stalls, 0U);
}

// A record and its scales go in together or not at all.
TEST(EnginePoliciesFaults, DropTakesCodesAndScalesTogether) {
    Gate gate;
    const InjectFaults faults(writes_wait_at(gate));
    Capture capture(Place::direct, with_policy(Overflow::drop, 3));
    EXPECT_TRUE(capture.try_submit(DType::u8, {4096}));
    EXPECT_TRUE(capture.try_submit(DType::u8, {4096}));
    gate.wait_for_visitor();
    EXPECT_FALSE(capture.try_submit(DType::f32, {2, 2}, DType::i8));  // one block is free, two are needed
    EXPECT_TRUE(capture.try_submit(DType::f32, {2, 2}, DType::f32));
    EXPECT_FALSE(capture.try_submit(DType::f32, {2, 2}, DType::i8));
    gate.open();
    while (!capture.try_submit(DType::f32, {2, 2}, DType::i8)) std::this_thread::yield();
    capture.close_and_compare();
}

TEST(EnginePoliciesFaults, FailThrowsAndGoesOnAfterwards) {
    Gate gate;
    const InjectFaults faults(writes_wait_at(gate));
    Capture capture(Place::direct, with_policy(Overflow::fail, 2));
    capture.submit(DType::u8, {4096});
    capture.submit(DType::u8, {4000});
    gate.wait_for_visitor();
    for (int i = 0; i < 3; ++i) {
        const std::string error = engine_error([&] { capture.submit(DType::u8, {100}); });
        EXPECT_NE(error.find("the ring is full (8192 bytes)"), std::string::npos) << error;
    }
    EXPECT_EQ(capture.engine->stats().drops, 0U);
    gate.open();
    while (!engine_error([&] { capture.submit(DType::u8, {100}); }).empty()) std::this_thread::yield();
    capture.close_and_compare();
}

// The lane's tail is carried into its next block, which has room for an empty record beside it.
TEST(EnginePolicies, AnEmptyRecordNeedsOneBlock) {
    Capture capture(Place::memory, with_policy(Overflow::fail, 1));
    const auto full = [&](DType dtype, const Shape& shape) {
        return !engine_error([&] { capture.submit(dtype, shape); }).empty();
    };
    EXPECT_FALSE(full(DType::u8, {100}));
    EXPECT_TRUE(full(DType::f32, {1}));  // hands the block over
    while (full(DType::u8, {0})) std::this_thread::yield();
    capture.close_and_compare();
}

// A record that can never fit is refused at once, and the message says what to do.
TEST(EnginePolicies, WithoutBlockARecordCannotBeLargerThanTheRing) {
    for (const Overflow overflow : {Overflow::drop, Overflow::fail}) {
        Capture capture(Place::memory, with_policy(overflow, 2));
        if (overflow == Overflow::drop) {
            EXPECT_FALSE(capture.try_submit(DType::u8, {8193}));
            EXPECT_TRUE(capture.try_submit(DType::u8, {8192}));
        } else {
            const std::string error = engine_error([&] { capture.submit(DType::u8, {8193}); });
            EXPECT_NE(error.find("raise ring_bytes"), std::string::npos) << error;
            capture.submit(DType::u8, {8192});
        }
        capture.close_and_compare();
    }
}

}  // namespace
}  // namespace nsf
