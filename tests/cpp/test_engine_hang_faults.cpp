// A disk whose calls do not return: nobody waits for it longer than Engine's patience.
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>

#include "engine_fixture.hpp"
#include "fault_injection.hpp"
#include "gate.hpp"
#include "shard_reader.hpp"

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
using testing_support::Verdict;

constexpr const char* said = "does not answer; once it does, recover the run";

EngineOptions patient(double seconds, Durability durability = {}) {
    EngineOptions options = small_options();
    options.patience = seconds;
    options.durability = durability;
    return options;
}

Faults hanging_writes(Gate& gate) {
    Faults hooks;
    hooks.pwrite = [&](int descriptor, std::size_t, off_t) {
        if (is_file(descriptor, ".partial")) gate.pass();
        return Verdict::pass();
    };
    return hooks;
}

template <typename Action>
double seconds_of(Action action) {
    const auto start = std::chrono::steady_clock::now();
    action();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void submit_until_it_throws(Capture& capture, std::string& error) {
    while (error.empty()) error = engine_error([&] { capture.submit(DType::f32, {512}); });
}

TEST(EngineHangFaults, ATapGivesUpAndSoDoesTheClose) {
    Gate gate;
    const InjectFaults faults(hanging_writes(gate));
    Capture capture(Place::buffered, patient(0.2));
    std::string error;
    EXPECT_LT(seconds_of([&] { submit_until_it_throws(capture, error); }), 20);
    EXPECT_NE(error.find(said), std::string::npos) << error;
    EXPECT_NE(error.find(capture.folder().path()), std::string::npos) << error;
    EXPECT_TRUE(capture.engine->hung());
    // From here on nobody waits.
    EXPECT_EQ(engine_error([&] { capture.submit(DType::u8, {1}); }), error);
    EXPECT_EQ(engine_error([&] { capture.engine->sync(); }), error);
    EXPECT_EQ(engine_error([&] { capture.engine->close(); }), error);
    EXPECT_TRUE(capture.engine->hung());
    EXPECT_EQ(engine_error([&] { capture.engine->close(); }), error);
    gate.open();
    capture.engine.reset();  // waits for the writer, which now comes to its end
    expect_part_of(read_run(capture.folder()), capture.expected);
}

TEST(EngineHangFaults, ADiskThatComesBackBeforeTheCloseIsWaitedFor) {
    Gate gate;
    const InjectFaults faults(hanging_writes(gate));
    Capture capture(Place::buffered, patient(0.2));
    std::string error;
    submit_until_it_throws(capture, error);
    gate.open();
    EXPECT_EQ(engine_error([&] { capture.engine->close(); }), error);  // what could not be stored stays lost
    EXPECT_FALSE(capture.engine->hung());
    expect_part_of(read_run(capture.folder()), capture.expected);
    EXPECT_FALSE(read_run(capture.folder()).empty());
}

TEST(EngineHangFaults, SyncGivesUp) {
    Gate gate;
    Faults hooks;
    hooks.fsync = [&](int) {
        gate.pass();
        return Verdict::pass();
    };
    const InjectFaults faults(hooks);
    Capture capture(Place::buffered, patient(0.2));
    capture.submit(DType::f32, {10});
    const std::string error = engine_error([&] { capture.engine->sync(); });
    EXPECT_NE(error.find(said), std::string::npos) << error;
    EXPECT_EQ(engine_error([&] { capture.submit(DType::f32, {10}); }), error);
    gate.open();
    EXPECT_EQ(engine_error([&] { capture.engine->close(); }), error);
    EXPECT_FALSE(capture.engine->hung());
}

TEST(EngineHangFaults, TheCloseGivesUp) {
    Gate gate;
    Faults hooks;
    hooks.rename = [&](const char*, const char*) {
        gate.pass();
        return Verdict::pass();
    };
    const InjectFaults faults(hooks);
    Capture capture(Place::buffered, patient(0.2));
    capture.submit(DType::f32, {10});
    const std::string error = engine_error([&] { capture.engine->close(); });
    EXPECT_NE(error.find(said), std::string::npos) << error;
    EXPECT_TRUE(capture.engine->hung());
    EXPECT_EQ(capture.engine->stats().records, 1U);  // it can still be asked
    gate.open();
    capture.engine.reset();
    expect_same(read_run(capture.folder()), capture.expected);
}

TEST(EngineHangFaults, ASlowDiskIsNotOneThatHangs) {
    Faults hooks;
    hooks.pwrite = [](int descriptor, std::size_t, off_t) {
        if (is_file(descriptor, ".partial")) std::this_thread::sleep_for(std::chrono::milliseconds(20));
        return Verdict::pass();
    };
    const InjectFaults faults(hooks);
    Durability often;
    often.bytes = 2048;
    Capture capture(Place::buffered, patient(0.5, often));
    const double seconds = seconds_of([&] {
        for (int i = 0; i < 60; ++i) capture.submit(DType::f32, {1000});
        capture.engine->sync();
        capture.close_and_compare();
    });
    EXPECT_GT(seconds, 0.5);  // longer than the patience, all in all
    EXPECT_FALSE(capture.engine->hung());
}

TEST(EngineHangFaults, MemoryIsNeverGivenUp) {
    Capture capture(Place::memory, patient(0.001));
    for (int i = 0; i < 200; ++i) capture.submit(DType::f32, {3000});
    capture.close_and_compare();
}

}  // namespace
}  // namespace nsf
