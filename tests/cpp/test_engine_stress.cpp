// Several producers at once, a ring that is always full, many dtypes: everything is read back and compared.
// Made to run under ThreadSanitizer and the Address and UB sanitizers.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "captured.hpp"
#include "core/engine.hpp"
#include "core/error.hpp"
#include "engine_fixture.hpp"

namespace nsf {
namespace {

using testing_support::contiguous_tensor;
using testing_support::expect_same;
using testing_support::expect_stored;
using testing_support::keep_all;
using testing_support::OwnedTensor;
using testing_support::pick_below;
using testing_support::Place;
using testing_support::place_name;
using testing_support::Random;
using testing_support::random_shape;
using testing_support::read_records;
using testing_support::read_run;
using testing_support::strided_tensor;
using testing_support::TempFolder;
using testing_support::Tensors;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr std::uint32_t submissions = 70;
#else
constexpr std::uint32_t submissions = 300;
#endif
constexpr std::uint32_t producers = 4;

EngineOptions stress_options(Place place, const TempFolder& folder, Overflow overflow) {
    EngineOptions options;
    options.folder = place == Place::memory ? "" : folder.path();
    options.direct_io = place == Place::direct;
    options.ring_bytes = 6 * 8192;
    options.block_bytes = 8192;
    options.shard_bytes = 1'500'000;
    options.overflow = overflow;
    return options;
}

struct Cast {
    DType source;
    DType target;
};

// Mostly small tensors of any layout, some larger than the ring.
OwnedTensor random_tensor(Random& random, DType dtype) {
    if (pick_below(random, 8) == 0) {
        return contiguous_tensor(random, dtype, {3, 1 + static_cast<std::int64_t>(pick_below(random, 9000))});
    }
    if (pick_below(random, 3) == 0)
        return strided_tensor(random, dtype, random_shape(random, pick_below(random, 6)));
    return contiguous_tensor(random, dtype, {1 + static_cast<std::int64_t>(pick_below(random, 1500))});
}

// One thread's submissions; every one that the engine took is expected to come out.
class Producer {
  public:
    Producer(Engine& engine, std::uint32_t stream) : engine_(engine), stream_(stream), random_(stream + 1) {}

    void run(std::uint32_t count) {
        static constexpr std::array casts = {
            Cast{DType::f32, DType::f32},         Cast{DType::f32, DType::bf16},
            Cast{DType::f32, DType::i8},          Cast{DType::bf16, DType::bf16},
            Cast{DType::bf16, DType::f32},        Cast{DType::f16, DType::i8},
            Cast{DType::f32, DType::f8_e4m3fn},   Cast{DType::i64, DType::i64},
            Cast{DType::boolean, DType::boolean}, Cast{DType::u8, DType::u8},
            Cast{DType::c64, DType::c64},         Cast{DType::f64, DType::f16}};
        for (std::uint32_t step = 0; step < count; ++step) {
            const Cast cast = casts[pick_below(random_, casts.size())];
            OwnedTensor tensor = random_tensor(random_, cast.source);
            const Origin origin{stream_, step % 3, step, step % 2};
            try {
                engine_.submit(origin, keep_all(tensor.view), cast.target);
            } catch (const EngineError& error) {
                last_error = error.what();
                return;
            }
            expect_stored(expected, engine_.streams()[stream_], origin, keep_all(tensor.view), cast.target);
            // A late read would see this, and ThreadSanitizer would see the race.
            std::fill(tensor.memory.begin(), tensor.memory.end(), std::byte{0x55});
        }
    }

    Tensors expected;
    std::string last_error;

  private:
    Engine& engine_;
    std::uint32_t stream_;
    Random random_;
};

std::vector<Stream> all_streams() {
    std::vector<Stream> streams;
    for (std::uint32_t i = 0; i < producers; ++i)
        streams.push_back({"stream " + std::to_string(i), i % 2 == 1});
    return streams;
}

// Runs all producers to their end, `meanwhile` beside them.
template <typename Meanwhile>
std::vector<Producer> run_producers(Engine& engine, std::uint32_t count, Meanwhile meanwhile) {
    std::vector<Producer> all;
    for (std::uint32_t i = 0; i < producers; ++i) all.emplace_back(engine, i);
    std::vector<std::thread> threads;
    for (Producer& each : all) threads.emplace_back([&each, count] { each.run(count); });
    meanwhile();
    for (std::thread& thread : threads) thread.join();
    return all;
}

Tensors merge(const std::vector<Producer>& all) {
    Tensors expected;
    for (const Producer& each : all) expected.insert(each.expected.begin(), each.expected.end());
    return expected;
}

class EngineStress : public ::testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Sinks, EngineStress,
                         ::testing::Values(Place::direct, Place::buffered, Place::memory), place_name);

TEST_P(EngineStress, NothingIsLostAndNothingIsTorn) {
    const TempFolder folder;
    Engine engine(stress_options(GetParam(), folder, Overflow::block), all_streams());
    std::atomic<bool> done{false};
    std::thread observer([&] {
        std::uint64_t before = 0;
        while (!done) {
            const std::uint64_t records = engine.stats().records;
            EXPECT_GE(records, before);
            if (records >= before + 50) {
                EXPECT_GE(engine.records().size(), records);
                EXPECT_TRUE(engine.dropped().empty());
                before = records;
            }
            std::this_thread::yield();
        }
    });
    const Tensors expected = merge(run_producers(engine, submissions, [] {}));
    done = true;
    observer.join();
    engine.close();
    expect_same(read_records(engine), expected);
    if (GetParam() != Place::memory) expect_same(read_run(folder), expected);
    const Stats stats = engine.stats();
    EXPECT_EQ(stats.records, expected.size());
    EXPECT_LE(stats.peak_ring_bytes, stats.ring_bytes);
    std::uint64_t bytes = 0;
    for (const auto& [key, tensor] : expected) bytes += tensor.bytes.size();
    EXPECT_EQ(stats.bytes_written, bytes);
}

TEST_P(EngineStress, WhatIsNotDroppedIsWhole) {
    const TempFolder folder;
    Engine engine(stress_options(GetParam(), folder, Overflow::drop), all_streams());
    Tensors expected = merge(run_producers(engine, submissions, [] {}));
    engine.close();
    for (const DroppedRecord& dropped : engine.dropped()) {
        Record record;
        record.prompt = dropped.prompt;
        record.step = dropped.step;
        record.call = dropped.call;
        EXPECT_EQ(expected.erase(format_key(engine.streams()[dropped.stream], record)), 1U);
        record.is_scale = true;
        expected.erase(format_key(engine.streams()[dropped.stream], record));
    }
    expect_same(read_records(engine), expected);
    EXPECT_EQ(engine.stats().drops, engine.dropped().size());
    EXPECT_EQ(engine.stats().stalls, 0U);
}

// Every submission before the close comes out, every one after it is refused; none is taken half.
TEST_P(EngineStress, CloseBesideProducers) {
    const TempFolder folder;
    Engine engine(stress_options(GetParam(), folder, Overflow::block), all_streams());
    const std::vector<Producer> all = run_producers(engine, 1'000'000, [&] {
        while (engine.stats().records < 100) std::this_thread::yield();
        std::thread other([&] { engine.close(); });
        engine.close();
        other.join();
    });
    for (const Producer& each : all) EXPECT_EQ(each.last_error, "the capture is closed");
    expect_same(read_records(engine), merge(all));
}

TEST_P(EngineStress, AFailureBesideProducers) {
    if (GetParam() == Place::memory) GTEST_SKIP() << "memory does not fail";
    const TempFolder folder;
    Engine engine(stress_options(GetParam(), folder, Overflow::block), all_streams());
    // Where the second shard of a dtype is to be opened, a file of its name stands already.
    testing_support::write_file(folder / "activations-float32-00001.safetensors.partial", "precious");
    const std::vector<Producer> all = run_producers(engine, 1'000'000, [] {});
    for (const Producer& each : all)
        EXPECT_NE(each.last_error.find("errno 17"), std::string::npos) << each.last_error;
    EXPECT_EQ(testing_support::engine_error([&] { engine.close(); }), all[0].last_error);
    const Tensors expected = merge(all);
    for (const auto& [key, tensor] : read_run(folder)) {
        const auto found = expected.find(key);
        ASSERT_NE(found, expected.end()) << key;
        EXPECT_TRUE(found->second == tensor) << key;
    }
}

}  // namespace
}  // namespace nsf
