// Engine::try_submit(), the short way of small records, beside submit(): what it stores is the same, and what it cannot
// do at once it leaves.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
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
using testing_support::expect_stored;
using testing_support::keep_all;
using testing_support::OwnedTensor;
using testing_support::Place;
using testing_support::place_name;
using testing_support::small_options;

class SmallRecords : public ::testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Sinks, SmallRecords,
                         ::testing::Values(Place::direct, Place::buffered, Place::memory), place_name);

// Whether the tensor went the short way; if not, it is stored by submit(), unless `only_short`.
bool store(Capture& capture, DType dtype, const Shape& shape, DType target, bool only_short = false) {
    const std::optional<RecordForm> form = capture.engine->form_of(0, dtype, target, shape);
    const OwnedTensor tensor = contiguous_tensor(capture.random, dtype, shape);
    const Origin origin = capture.next();
    const bool stored = form && capture.engine->try_submit(*form, origin, nullptr, tensor.view.data);
    if (stored) {
        expect_stored(capture.expected, capture.engine->streams()[0], origin, keep_all(tensor.view), target,
                      capture.engine->options().cast_rules);
    } else if (!only_short) {
        capture.submit(origin, keep_all(tensor.view), target);
    }
    return stored;
}

TEST_P(SmallRecords, SizesAndCastsThatRunThroughManyBlocksAndShards) {
    EngineOptions options = small_options(3);
    options.shard_bytes = 30000;
    Capture capture(GetParam(), options);
    int short_ways = 0;
    for (std::int64_t i = 0; i < 900; ++i) {
        const DType target = i % 7 == 0   ? DType::bf16
                             : i % 7 == 1 ? DType::f16
                             : i % 7 == 2 ? DType::i8
                                          : DType::f32;
        const std::int64_t sizes[] = {0, 1, 63, 64, 65, 1023, 1024, 1025, 7};
        short_ways += static_cast<int>(store(capture, DType::f32, {1, sizes[i % 9]}, target));
    }
    EXPECT_GT(short_ways, 300);
    capture.close_and_compare();
}

TEST_P(SmallRecords, MoreThanABlockMayHoldSegments) {
    Capture capture(GetParam(), small_options(2, 64 << 10));
    for (std::size_t i = 0; i < 2 * max_segments + 10; ++i) store(capture, DType::u8, {3}, DType::u8);
    capture.close_and_compare();
}

TEST_P(SmallRecords, TheFirstOfALaneAndWhatFillsABlockAreLeft) {
    Capture capture(GetParam(), small_options(4));
    EXPECT_FALSE(store(capture, DType::f32, {8}, DType::f32));              // no block is open
    EXPECT_TRUE(store(capture, DType::f32, {1000}, DType::f32));            // 32 + 4000 bytes of 4096
    EXPECT_FALSE(store(capture, DType::f32, {16}, DType::f32));             // exactly full
    EXPECT_FALSE(store(capture, DType::f32, {8}, DType::f32));              // none is open again
    EXPECT_FALSE(store(capture, DType::f32, {8}, DType::f16));              // of this lane neither
    EXPECT_FALSE(capture.engine->form_of(0, DType::f32, DType::i8, {8}));   // has scales
    EXPECT_FALSE(capture.engine->form_of(0, DType::i32, DType::f32, {8}));  // no such cast
    capture.close_and_compare();
}

TEST_P(SmallRecords, NotesAreTheEnginesOwn) {
    Capture capture(GetParam(), small_options());
    EXPECT_EQ(capture.engine->intern(""), nullptr);
    const std::string* note = capture.engine->intern("{\"positions\":[4]}");
    ASSERT_NE(note, nullptr);
    EXPECT_EQ(*note, "{\"positions\":[4]}");
    for (int i = 0; i < 100; ++i) capture.engine->intern("{\"positions\":[" + std::to_string(i) + "]}");
    EXPECT_EQ(capture.engine->intern("{\"positions\":[4]}"), note);

    store(capture, DType::f32, {4}, DType::f32);
    const auto form = capture.engine->form_of(1, DType::f32, DType::f32, {2, 2});
    const OwnedTensor tensor = contiguous_tensor(capture.random, DType::f32, {2, 2});
    ASSERT_TRUE(capture.engine->try_submit(*form, {1, 2, 3, 4}, note, tensor.view.data));
    capture.engine->close();
    const Record record = capture.engine->records().back();
    EXPECT_EQ(record.stream, 1U);
    EXPECT_EQ(record.prompt, 2U);
    EXPECT_EQ(record.step, 3U);
    EXPECT_EQ(record.call, 4U);
    EXPECT_EQ(*record.shape, (Shape{2, 2}));
    EXPECT_EQ(record.note, note);
    EXPECT_FALSE(record.is_scale);
}

TEST_P(SmallRecords, AClosedEngineTakesNone) {
    Capture capture(GetParam(), small_options());
    store(capture, DType::f32, {4}, DType::f32);
    capture.close_and_compare();
    EXPECT_FALSE(store(capture, DType::f32, {4}, DType::f32, true));
}

TEST_P(SmallRecords, SeveralThreadsBesideSubmit) {
    Capture capture(GetParam(), small_options(3));
    std::mutex expecting;
    std::vector<std::thread> threads;
    std::atomic<int> short_ways{0};
    for (std::uint32_t number = 0; number < 3; ++number) {
        threads.emplace_back([&, number] {
            testing_support::Random random{std::uint64_t{number} + 1};
            const Shape shape{1, 20 + static_cast<std::int64_t>(number)};
            const auto form = capture.engine->form_of(0, DType::f32, DType::bf16, shape);
            for (std::uint32_t step = 0; step < 400; ++step) {
                const OwnedTensor tensor = contiguous_tensor(random, DType::f32, shape);
                const Origin origin{0, number, step, 0};
                if (capture.engine->try_submit(*form, origin, nullptr, tensor.view.data)) {
                    ++short_ways;
                } else {
                    capture.engine->submit(origin, keep_all(tensor.view), DType::bf16);
                }
                const std::lock_guard lock(expecting);
                expect_stored(capture.expected, capture.engine->streams()[0], origin, keep_all(tensor.view),
                              DType::bf16, capture.engine->options().cast_rules);
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_GT(short_ways.load(), 0);
    capture.close_and_compare();
}

}  // namespace
}  // namespace nsf
