#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/engine.hpp"
#include "engine_fixture.hpp"

namespace nsf {
namespace {

using testing_support::Capture;
using testing_support::contiguous_tensor;
using testing_support::engine_error;
using testing_support::keep_all;
using testing_support::OwnedTensor;
using testing_support::Place;
using testing_support::place_name;
using testing_support::Random;
using testing_support::small_options;
using testing_support::strided_tensor;
using testing_support::TempFolder;

class EngineTest : public ::testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Sinks, EngineTest, ::testing::Values(Place::direct, Place::buffered, Place::memory),
                         place_name);

TEST_P(EngineTest, ATensorLargerThanTheRingComesOutWhole) {
    Capture capture(GetParam(), small_options(2));
    capture.submit(DType::f32, {100});
    capture.submit(DType::f32, {13, 1001});  // 52 KiB through a ring of 8
    capture.submit(DType::f32, {77, 501}, DType::bf16);
    capture.submit(DType::f32, {77, 501}, DType::i8);  // and its scales
    capture.submit(DType::f32, {1});
    capture.close_and_compare();
}

TEST_P(EngineTest, LanesOfEveryDtypeShareARingOfOneBlock) {
    Capture capture(GetParam(), small_options(1));
    for (int round = 0; round < 6; ++round) {
        for (std::size_t code = 0; code < dtype_count; ++code) {
            capture.submit(
                static_cast<DType>(code),
                {1 + static_cast<std::int64_t>((code * 7 + static_cast<std::size_t>(round) * 131) % 700)});
        }
    }
    capture.close_and_compare();
}

TEST_P(EngineTest, ScalarsAndTensorsOfNoElements) {
    for (const std::size_t blocks : {1U, 4U}) {
        Capture capture(GetParam(), small_options(blocks));
        for (const DType target : {DType::f32, DType::f16, DType::i8}) {
            for (const Shape& shape :
                 {Shape{}, Shape{0}, Shape{3, 0}, Shape{0, 3}, Shape{1, 1}, Shape{2, 0, 3}}) {
                capture.submit(DType::f32, shape, target);
            }
        }
        capture.submit(DType::boolean, {0});
        capture.close_and_compare();
    }
}

TEST_P(EngineTest, NothingButEmptyRecords) {
    Capture capture(GetParam(), small_options());
    for (int i = 0; i < 5; ++i) capture.submit(DType::f32, {0, 4});
    capture.close_and_compare();
}

// More records than a block may hold segments: it is handed over early, and the next goes on in its tail.
TEST_P(EngineTest, ManyTinyRecords) {
    Capture capture(GetParam(), small_options(2, 64 << 10));
    for (std::size_t i = 0; i < max_segments + 100; ++i) capture.submit(DType::u8, {3});
    capture.close_and_compare();
}

TEST_P(EngineTest, AnyLayoutAndSelection) {
    Capture capture(GetParam(), small_options());
    for (std::int64_t i = 0; i < 60; ++i) {
        const OwnedTensor tensor = strided_tensor(capture.random, DType::bf16, {3, 1 + i % 5, 40 + i});
        PositionSpec last;
        last.kind = i % 3 == 0 ? PositionSpec::Kind::all : PositionSpec::Kind::last;
        StepFacts facts;
        facts.batch = 3;
        facts.length = 1 + i % 5;
        facts.mask.assign(static_cast<std::size_t>(facts.batch * facts.length), 1);
        facts.mask.back() = 0;  // the rows' last real tokens differ
        const Kept kept = keep_positions(last, facts, tensor.view);
        capture.submit(capture.next(), kept, i % 2 == 0 ? DType::f32 : DType::i8);
    }
    capture.close_and_compare();
    EXPECT_EQ(*capture.engine->records()[0].note, R"({"real_tokens":[[0,1],[0,1],[]]})");
}

TEST_P(EngineTest, RecordsSayWhereTheyComeFrom) {
    Capture capture(GetParam(), small_options());
    const OwnedTensor tensor = contiguous_tensor(capture.random, DType::f16, {2, 3});
    capture.submit(Origin{1, 2, 3, 4}, keep_all(tensor.view), DType::i8);
    capture.submit(Origin{0, 0, 5, 0}, keep_all(tensor.view), DType::f16);
    capture.close_and_compare();
    std::vector<Record> records = capture.engine->records();
    ASSERT_EQ(records.size(), 3U);
    for (const Record& record : records) {
        EXPECT_EQ(record.source, DType::f16);
        EXPECT_EQ(record.note, nullptr);
        if (record.stream == 0) {
            EXPECT_EQ(record.sequence, 1U);
            continue;
        }
        EXPECT_EQ(record.sequence, 0U);
        EXPECT_EQ(format_key(capture.engine->streams()[1], record),
                  record.is_scale ? "other/p2/c4/000003/input/scale" : "other/p2/c4/000003/input");
        EXPECT_EQ(*record.shape, record.is_scale ? Shape{2} : (Shape{2, 3}));
    }
}

TEST_P(EngineTest, TheTensorIsNotReadAfterSubmitHasReturned) {
    Capture capture(GetParam(), small_options());
    for (int i = 0; i < 50; ++i) {
        OwnedTensor tensor = contiguous_tensor(capture.random, DType::f32, {500});
        capture.submit(capture.next(), keep_all(tensor.view), DType::f32);
        std::fill(tensor.memory.begin(), tensor.memory.end(), std::byte{0xAA});
    }
    capture.close_and_compare();
}

TEST_P(EngineTest, CloseIsIdempotentAndEndsTheCapture) {
    Capture capture(GetParam(), small_options());
    capture.submit(DType::f32, {5});
    capture.close_and_compare();
    capture.engine->close();
    capture.engine->close();
    const OwnedTensor tensor = contiguous_tensor(capture.random, DType::f32, {5});
    const auto submit = [&] { capture.engine->submit(capture.next(), keep_all(tensor.view), DType::f32); };
    EXPECT_EQ(engine_error(submit), "the capture is closed");
    capture.close_and_compare();
}

TEST_P(EngineTest, NothingWasCaptured) {
    Capture capture(GetParam(), small_options());
    capture.close_and_compare();
    EXPECT_TRUE(capture.folder().names().empty());
    EXPECT_EQ(capture.engine->stats().peak_ring_bytes, 0U);
}

TEST_P(EngineTest, TheDestructorCloses) {
    Capture capture(GetParam(), small_options());
    capture.submit(DType::f32, {5000});
    capture.submit(DType::u8, {7});
    capture.engine.reset();
    if (GetParam() != Place::memory)
        testing_support::expect_same(read_run(capture.folder()), capture.expected);
}

TEST_P(EngineTest, WhatCannotBeStoredLeavesNoTrace) {
    Capture capture(GetParam(), small_options());
    const OwnedTensor tensor = contiguous_tensor(capture.random, DType::i32, {5});
    EXPECT_THROW(capture.engine->submit(capture.next(), keep_all(tensor.view), DType::f32),
                 std::invalid_argument);
    capture.submit(DType::i32, {5});
    capture.close_and_compare();
}

TEST_P(EngineTest, Statistics) {
    Capture capture(GetParam(), small_options(3));
    capture.submit(DType::f32, {1000});
    capture.submit(DType::f32, {4, 25}, DType::i8);
    const std::uint64_t start = TickClock::now();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const std::uint64_t ticks = TickClock::since(start);
    capture.engine->count_tap(ticks, 4000);
    capture.engine->count_tap(3 * ticks, 400);
    capture.close_and_compare();
    const Stats stats = capture.engine->stats();
    EXPECT_EQ(stats.records, 3U);
    EXPECT_EQ(stats.bytes_written, 4000U + 100 + 16);
    EXPECT_EQ(stats.bytes_in, 4400U);
    EXPECT_EQ(stats.tap_calls, 2U);
    EXPECT_GE(stats.tap_seconds, 0.079);
    EXPECT_LT(stats.tap_seconds, 8.0);  // a busy machine sleeps long
    EXPECT_EQ(stats.drops, 0U);
    EXPECT_EQ(stats.ring_bytes, 3U * 4096);
    EXPECT_GE(stats.peak_ring_bytes, 4096U);
    EXPECT_LE(stats.peak_ring_bytes, 3U * 4096);
}

TEST(Engine, RefusesARingThatIsNone) {
    EngineOptions options = small_options();
    options.block_bytes = 1000;
    EXPECT_THROW(Engine(options, {}), std::invalid_argument);
    options = small_options();
    options.ring_bytes = 100;
    EXPECT_THROW(Engine(options, {}), std::invalid_argument);
}

TEST(Engine, ASlabOutlivesTheEngine) {
    auto engine = std::make_unique<Engine>(small_options(), std::vector<Stream>{{"a", false}});
    Random random(1);
    const OwnedTensor tensor = contiguous_tensor(random, DType::u8, {10});
    engine->submit({}, keep_all(tensor.view), DType::u8);
    engine->close();
    const Record record = engine->records().at(0);
    const std::shared_ptr<Slab> slab = engine->slab(record.shard);
    engine.reset();
    EXPECT_EQ(testing_support::as_text(slab->data + record.offset, 10),
              testing_support::as_text(tensor.memory.data(), 10));
}

TEST(Engine, AFolderHasNoSlabs) {
    const TempFolder folder;
    EngineOptions options = small_options();
    options.folder = folder.path();
    EXPECT_EQ(Engine(options, {}).slab(0), nullptr);
}

}  // namespace
}  // namespace nsf
