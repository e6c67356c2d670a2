// Errors of the real file system, and what a forked child may do with its parent's engine.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "child_process.hpp"
#include "core/engine.hpp"
#include "engine_fixture.hpp"

namespace nsf {
namespace {

using testing_support::Capture;
using testing_support::ChildChecks;
using testing_support::contiguous_tensor;
using testing_support::engine_error;
using testing_support::keep_all;
using testing_support::OwnedTensor;
using testing_support::Place;
using testing_support::Random;
using testing_support::read_run;
using testing_support::run_in_child;
using testing_support::small_options;
using testing_support::Tensors;

class EngineErrors : public ::testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Files, EngineErrors, ::testing::Values(Place::direct, Place::buffered),
                         testing_support::place_name);

TEST_P(EngineErrors, TheFolderIsGoneBeforeTheFirstBlock) {
    Capture capture(GetParam(), small_options());
    capture.submit(DType::u8, {10});
    std::filesystem::remove_all(capture.folder().path());
    const std::string error = engine_error([&] { capture.engine->close(); });
    EXPECT_NE(error.find("cannot create " + capture.folder().path()), std::string::npos) << error;
    EXPECT_NE(error.find("errno 2"), std::string::npos) << error;
    EXPECT_EQ(capture.engine->stats().records, 0U);
}

TEST_P(EngineErrors, TheFolderGoesAwayWhileShardsAreOpen) {
    Capture capture(GetParam(), small_options(1));
    capture.submit(DType::u8, {10'000});
    capture.submit(DType::f32, {10'000});
    capture.submit(DType::u8, {10'000});  // with one block, all of the first two is written by now
    std::filesystem::remove_all(capture.folder().path());
    const std::string error = engine_error([&] {
        capture.submit(DType::u8, {10'000});
        capture.engine->close();
    });
    EXPECT_NE(error.find(capture.folder().path()), std::string::npos) << error;
    EXPECT_NE(error.find("errno 2"), std::string::npos) << error;
    capture.engine.reset();
    EXPECT_FALSE(std::filesystem::exists(capture.folder().path()));
}

TEST_P(EngineErrors, WhatStandsInTheFolderIsNotOverwritten) {
    Capture capture(GetParam(), small_options());
    const std::string standing = capture.folder() / "activations-uint8-00000.safetensors.partial";
    testing_support::write_file(standing, "precious");
    capture.submit(DType::u8, {10});
    EXPECT_NE(engine_error([&] { capture.engine->close(); }).find("errno 17"), std::string::npos);
    EXPECT_EQ(testing_support::read_file(standing), "precious");
}

// A write beyond the limit raises SIGXFSZ, which kills a process that has not asked for it.
TEST_P(EngineErrors, TheLargestFileThatIsAllowed) {
    const auto body = [&](ChildChecks& checks) {
        std::signal(SIGXFSZ, SIG_DFL);
        const rlimit limit{(64U << 10) + 50'000, RLIM_INFINITY};
        checks.check(::setrlimit(RLIMIT_FSIZE, &limit) == 0, "setrlimit");
        Capture capture(GetParam(), small_options());
        std::string error;
        while (error.empty()) error = engine_error([&] { capture.submit(DType::u8, {1000}); });
        checks.check(error.find("errno 27") != std::string::npos, error);
        checks.check(engine_error([&] { capture.engine->close(); }) == error, "close tells another error");
        const Tensors stored = read_run(capture.folder());
        checks.check(stored.size() >= 40 && stored.size() <= 50, std::to_string(stored.size()) + " records");
        for (const auto& [key, tensor] : stored) checks.check(capture.expected.at(key) == tensor, key);
        std::filesystem::remove_all(capture.folder().path());
    };
    EXPECT_EQ(run_in_child(body), "");
}

// Returns once the threads behind the ring have nothing to do: AddressSanitizer's allocator does not survive a fork while
// another thread is in it.
void wait_until_written(const Engine& engine, std::uint64_t bytes) {
    while (engine.stats().bytes_written < bytes) std::this_thread::yield();
}

TEST_P(EngineErrors, AForkedChildCannotUseTheEngineAndHarmsNothing) {
    Capture capture(GetParam(), small_options());
    capture.submit(DType::u8, {10'000});
    capture.submit(DType::f32, {100});  // stands in a block
    wait_until_written(*capture.engine, 2 * 4096);
    const auto body = [&](ChildChecks& checks) {
        const std::string error = engine_error([&] { capture.submit(DType::u8, {10}); });
        checks.check(error.find("forked process") != std::string::npos, "submit said: " + error);
        checks.check(engine_error([&] { capture.engine->close(); }).empty(), "close threw");
        capture.engine.reset();
#ifndef __SANITIZE_THREAD__  // which allows no new thread where there was one at the fork
        Capture own(GetParam(), small_options());
        own.submit(DType::u8, {10'000});
        own.engine->close();
        checks.check(read_run(own.folder()) == own.expected, "the child's own capture");
        std::filesystem::remove_all(own.folder().path());
#endif
    };
    EXPECT_EQ(run_in_child(body), "");
    capture.submit(DType::u8, {10'000});
    capture.close_and_compare();
}

TEST(EngineFork, AnEngineOfMemoryLikewise) {
    Capture capture(Place::memory, small_options());
    capture.submit(DType::u8, {10'000});
    wait_until_written(*capture.engine, 2 * 4096);
    const auto body = [&](ChildChecks& checks) {
        checks.check(!engine_error([&] { capture.submit(DType::u8, {10}); }).empty(), "submit went through");
        capture.engine.reset();
    };
    EXPECT_EQ(run_in_child(body), "");
    capture.submit(DType::u8, {10'000});
    capture.close_and_compare();
}

}  // namespace
}  // namespace nsf
