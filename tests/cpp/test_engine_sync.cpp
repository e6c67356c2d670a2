// What is durable, and when: Engine::sync(), and what Durability asks for.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "core/engine.hpp"
#include "engine_fixture.hpp"

namespace nsf {
namespace {

using testing_support::Capture;
using testing_support::engine_error;
using testing_support::Place;
using testing_support::place_name;
using testing_support::small_options;

class EngineSync : public ::testing::TestWithParam<Place> {
  protected:
    bool on_disk() const { return GetParam() != Place::memory; }
};

EngineOptions durable(Durability durability, std::uint64_t shard_bytes = 1 << 20) {
    EngineOptions options = small_options();
    options.durability = durability;
    options.shard_bytes = shard_bytes;
    return options;
}

// Waits for what another thread does; a minute is for ever.
template <typename Condition>
bool comes_true(Condition condition) {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (!condition()) {
        if (std::chrono::steady_clock::now() > limit) return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
}

TEST_P(EngineSync, SyncReturnsWhenAllIsDurable) {
    Capture capture(GetParam(), durable({}));
    capture.engine->sync();  // nothing has come yet
    EXPECT_EQ(capture.engine->stats().acknowledged, 0U);
    for (int i = 1; i <= 20; ++i) {
        capture.submit(DType::f32, {i * 37});
        capture.submit(DType::f32, {0});
        capture.submit(DType::f32, {3, i}, DType::i8);
        capture.engine->sync();
        const Stats stats = capture.engine->stats();
        EXPECT_EQ(stats.records, 4U * static_cast<unsigned>(i));  // a scale is one
        EXPECT_EQ(stats.acknowledged, on_disk() ? stats.records : 0U);
    }
    capture.close_and_compare();
    EXPECT_EQ(engine_error([&] { capture.engine->sync(); }), "the capture is closed");
}

TEST_P(EngineSync, AllIsAcknowledgedByTheClose) {
    for (const bool at_close : {false, true}) {
        Durability durability;
        durability.at_close = at_close;
        Capture capture(GetParam(), durable(durability, 3000));
        for (int i = 0; i < 100; ++i) capture.submit(DType::f32, {i});
        capture.submit(DType::u8, {10'000});
        EXPECT_TRUE(!at_close || capture.engine->stats().acknowledged == 0);
        capture.close_and_compare();
        EXPECT_EQ(capture.engine->stats().acknowledged, on_disk() ? 101U : 0U);
    }
}

// More full shards than may wait for the end.
TEST_P(EngineSync, ManyShardsThatWaitForTheClose) {
    Durability durability;
    durability.at_close = true;
    Capture capture(GetParam(), durable(durability, 1000));
    for (int i = 0; i < 150; ++i) capture.submit(DType::u8, {1000});
    capture.close_and_compare();
}

TEST_P(EngineSync, NeverFurtherBehindThanSoManyBytes) {
    Durability durability;
    durability.bytes = 10'000;
    Capture capture(GetParam(), durable(durability));
    for (int i = 0; i < 50; ++i) capture.submit(DType::u8, {3000});
    if (on_disk()) {
        // The record that crosses the limit asks for it, unless a mark is on its way: then a later one does.
        EXPECT_TRUE(comes_true([&] { return capture.engine->stats().acknowledged > 0; }));
        capture.engine->sync();
        capture.submit(DType::u8, {9999});
        EXPECT_EQ(capture.engine->stats().acknowledged, 50U);
        capture.submit(DType::u8, {1});
        EXPECT_TRUE(comes_true([&] { return capture.engine->stats().acknowledged == 52; }));
    }
    capture.close_and_compare();
}

// The model rests, and what it has left in a half-full block becomes durable all the same.
TEST_P(EngineSync, NeverFurtherBehindThanSoManySeconds) {
    Durability durability;
    durability.seconds = 0.01;
    Capture capture(GetParam(), durable(durability));
    for (unsigned i = 1; i <= 3; ++i) {
        capture.submit(DType::u8, {10});
        if (on_disk()) {
            EXPECT_TRUE(comes_true([&] { return capture.engine->stats().acknowledged == i; }));
        }
    }
    capture.close_and_compare();
}

TEST_P(EngineSync, BesideProducersAndTheClose) {
    Durability durability;
    durability.seconds = 0.001;
    durability.bytes = 20'000;
    Capture capture(GetParam(), durable(durability, 50'000));
    std::atomic<bool> ends{false};
    std::vector<std::thread> threads;
    for (int t = 0; t < 2; ++t) {
        threads.emplace_back([&] {
            while (!ends) {
                const std::string error = engine_error([&] { capture.engine->sync(); });
                EXPECT_TRUE(error.empty() || error == "the capture is closed") << error;
            }
        });
    }
    for (int i = 0; i < 300; ++i) capture.submit(i % 3 == 0 ? DType::f32 : DType::u8, {i * 11 % 2000});
    capture.close_and_compare();
    ends = true;
    for (std::thread& thread : threads) thread.join();
}

INSTANTIATE_TEST_SUITE_P(Places, EngineSync, ::testing::Values(Place::direct, Place::buffered, Place::memory),
                         place_name);

}  // namespace
}  // namespace nsf
