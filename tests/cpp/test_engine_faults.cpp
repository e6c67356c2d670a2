// Disk errors below a whole engine: what is durable is kept, the error comes out everywhere, nobody waits.
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
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
using testing_support::expect_part_of;
using testing_support::Faults;
using testing_support::Gate;
using testing_support::InjectFaults;
using testing_support::is_file;
using testing_support::Place;
using testing_support::read_run;
using testing_support::small_options;
using testing_support::Tensors;
using testing_support::Verdict;

// Writes of tensor bytes fail from this offset of a shard on; the first 64 KiB are the header's.
Faults full_from(off_t end) {
    Faults hooks;
    hooks.pwrite = [end](int descriptor, std::size_t, off_t offset) {
        return offset >= end && is_file(descriptor, ".partial") ? Verdict::fail(ENOSPC) : Verdict::pass();
    };
    return hooks;
}

// After a failed fsync nobody knows what is there: the shard keeps its journal, and no later one may call it whole.
TEST(EngineFaults, AFailedSyncEndsTheCaptureAndIsNotTriedAgain) {
    std::atomic<int> syncs{0};
    Faults hooks;
    hooks.fsync = [&](int descriptor) {
        if (!is_file(descriptor, ".partial")) return Verdict::pass();
        return ++syncs == 2 ? Verdict::fail(EIO) : Verdict::pass();
    };
    const InjectFaults faults(hooks);
    Capture capture(Place::direct, small_options());
    capture.submit(DType::u8, {1000});
    capture.engine->sync();
    EXPECT_EQ(capture.engine->stats().acknowledged, 1U);
    capture.submit(DType::u8, {1000});
    const std::string error = engine_error([&] { capture.engine->sync(); });
    EXPECT_NE(error.find("cannot sync"), std::string::npos) << error;
    EXPECT_NE(error.find("activations-uint8-00000.safetensors.partial"), std::string::npos) << error;
    EXPECT_NE(error.find("errno 5"), std::string::npos) << error;
    EXPECT_EQ(engine_error([&] { capture.submit(DType::u8, {1}); }), error);
    EXPECT_EQ(engine_error([&] { capture.engine->close(); }), error);
    EXPECT_EQ(capture.engine->stats().acknowledged, 1U);
    EXPECT_EQ(syncs, 2);
    EXPECT_TRUE(std::filesystem::exists(capture.folder() / "activations-uint8-00000.safetensors.partial"));
}

TEST(EngineFaults, AFullDiskKeepsWhatIsWhole) {
    const InjectFaults faults(full_from((64 << 10) + 5 * 4096));
    Capture capture(Place::direct, small_options());
    std::string error;
    while (error.empty()) error = engine_error([&] { capture.submit(DType::u8, {1000}); });
    EXPECT_NE(error.find("No space left on device (errno 28)"), std::string::npos) << error;
    EXPECT_NE(error.find("activations-uint8-00000.safetensors.partial"), std::string::npos) << error;
    // The same error for everybody, as often as anybody asks.
    EXPECT_EQ(engine_error([&] { capture.submit(DType::f32, {1}); }), error);
    EXPECT_EQ(engine_error([&] { capture.engine->close(); }), error);
    EXPECT_EQ(engine_error([&] { capture.engine->close(); }), error);
    const Tensors stored = read_run(capture.folder());
    EXPECT_EQ(stored.size(), 5U * 4096 / 1000);
    EXPECT_EQ(stored.size(), capture.engine->stats().records);
    expect_part_of(stored, capture.expected);
    testing_support::expect_same(testing_support::read_records(*capture.engine), stored);
}

// Another lane was fine so far: its shard is published up to the last whole record as well.
TEST(EngineFaults, TheOtherLanesAreKeptToo) {
    Faults hooks;
    hooks.pwrite = [](int descriptor, std::size_t, off_t offset) {
        const bool bytes = is_file(descriptor, "float32-00000.safetensors.partial") && offset >= 64 << 10;
        return bytes ? Verdict::fail(EIO) : Verdict::pass();
    };
    const InjectFaults faults(hooks);
    Capture capture(Place::direct, small_options());
    for (int i = 0; i < 10; ++i) capture.submit(DType::u8, {4096});
    const auto submit_floats = [&] { return engine_error([&] { capture.submit(DType::f32, {1024}); }); };
    while (submit_floats().empty()) std::this_thread::yield();
    EXPECT_NE(engine_error([&] { capture.engine->close(); }).find("float32"), std::string::npos);
    const Tensors stored = read_run(capture.folder());
    EXPECT_EQ(stored.size(), 10U);
    expect_part_of(stored, capture.expected);
}

// The producer waits for room when the disk fails: it must be let go.
TEST(EngineFaults, AFailureWakesAWaitingProducer) {
    Gate gate;
    Faults hooks;
    hooks.pwrite = [&](int descriptor, std::size_t, off_t) {
        if (!is_file(descriptor, ".partial")) return Verdict::pass();
        gate.pass();
        return Verdict::fail(EIO);
    };
    const InjectFaults faults(hooks);
    Capture capture(Place::direct, small_options(2));
    std::thread producer([&] { capture.submit(DType::u8, {100'000}); });  // many times the ring
    gate.wait_for_visitor();
    gate.open();
    producer.join();
    EXPECT_NE(engine_error([&] { capture.submit(DType::u8, {1}); }).find("errno 5"), std::string::npos);
    EXPECT_NE(engine_error([&] { capture.engine->close(); }).find("errno 5"), std::string::npos);
    EXPECT_TRUE(read_run(capture.folder()).empty());
}

TEST(EngineFaults, ADestructorAfterAFailureIsSilent) {
    const InjectFaults faults(full_from(0));
    Capture capture(Place::direct, small_options());
    for (int i = 0; i < 3; ++i) static_cast<void>(engine_error([&] { capture.submit(DType::u8, {5000}); }));
    capture.engine.reset();
    EXPECT_TRUE(read_run(capture.folder()).empty());
}

TEST(EngineFaults, AShardThatCannotBeMadeDurableIsNotPublished) {
    std::atomic<int> failures{1};
    Faults hooks;
    hooks.fsync = [&](int descriptor) {
        return is_file(descriptor, ".partial") && failures-- > 0 ? Verdict::fail(EIO) : Verdict::pass();
    };
    const InjectFaults faults(hooks);
    EngineOptions options = small_options();
    options.shard_bytes = 10'000;
    Capture capture(Place::buffered, options);
    while (engine_error([&] { capture.submit(DType::u8, {4096}); }).empty()) std::this_thread::yield();
    EXPECT_NE(engine_error([&] { capture.engine->close(); }).find("cannot sync"), std::string::npos);
    EXPECT_TRUE(std::filesystem::exists(capture.folder() / "activations-uint8-00000.safetensors.partial"));
    EXPECT_FALSE(std::filesystem::exists(capture.folder() / "activations-uint8-00000.safetensors"));
}

// A device with a coarser alignment refuses direct writes one day: the capture goes on through the cache.
TEST(EngineFaults, DirectWritesThatAreRefusedGoThroughTheCache) {
    std::atomic<int> calls{0};
    Faults hooks;
    hooks.pwrite = [&](int descriptor, std::size_t, off_t) {
        return is_file(descriptor, ".partial") && ++calls % 7 == 3 ? Verdict::shorten(513) : Verdict::pass();
    };
    const InjectFaults faults(hooks);
    Capture capture(Place::direct, small_options());
    for (int i = 0; i < 50; ++i) capture.submit(DType::u8, {1777});
    capture.close_and_compare();
}

TEST(EngineFaults, InterruptedAndShortWritesDoNotShow) {
    std::atomic<int> calls{0};
    Faults hooks;
    hooks.pwrite = [&](int, std::size_t, off_t) {
        const int call = ++calls;
        return call % 3 == 0   ? Verdict::fail(EINTR)
               : call % 3 == 1 ? Verdict::shorten(1000)
                               : Verdict::pass();
    };
    const InjectFaults faults(hooks);
    Capture capture(Place::buffered, small_options());
    for (int i = 0; i < 50; ++i) capture.submit(DType::f32, {333}, i % 2 == 0 ? DType::i8 : DType::f32);
    capture.close_and_compare();
}

}  // namespace
}  // namespace nsf
