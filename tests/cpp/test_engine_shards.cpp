// Where the engine's bytes stand in its shards: roll-over, early hand-over, headers.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "core/engine.hpp"
#include "engine_fixture.hpp"

namespace nsf {
namespace {

using testing_support::Capture;
using testing_support::contiguous_tensor;
using testing_support::keep_all;
using testing_support::OwnedTensor;
using testing_support::Place;
using testing_support::place_name;
using testing_support::read_file;
using testing_support::read_shard;
using testing_support::ShardFile;
using testing_support::small_options;

class EngineShards : public ::testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Files, EngineShards, ::testing::Values(Place::direct, Place::buffered), place_name);

std::size_t count_shards(const Capture& capture, const std::string& dtype) {
    std::size_t count = 0;
    for (const std::string& name : capture.folder().names()) {
        if (name.find("activations-" + dtype + "-") == 0 && name.ends_with(".safetensors")) ++count;
    }
    return count;
}

TEST_P(EngineShards, RollOverBySize) {
    EngineOptions options = small_options();
    options.shard_bytes = 10'000;
    Capture capture(GetParam(), options);
    for (const std::int64_t size : {4000, 6000, 1, 9999, 1, 20'000, 1, 1, 10'000, 0, 3})
        capture.submit(DType::u8, {size});
    capture.close_and_compare();
    // 4000 + 6000 | 1 + 9999 | 1 | 20000 | 1 + 1 | 10000 + 0 | 3
    EXPECT_EQ(count_shards(capture, "uint8"), 7U);
    const std::vector<Record> records = capture.engine->records();
    EXPECT_EQ(records.back().shard, 6U);
    EXPECT_EQ(records.back().offset, 0U);
}

TEST_P(EngineShards, RollOverOfSeveralLanesAtOnce) {
    EngineOptions options = small_options(2);
    options.shard_bytes = 5000;
    Capture capture(GetParam(), options);
    for (std::int64_t i = 0; i < 120; ++i) {
        capture.submit(DType::f32, {1 + i * 37 % 900},
                       i % 3 == 0   ? DType::f32
                       : i % 3 == 1 ? DType::bf16
                                    : DType::i8);
    }
    capture.close_and_compare();
    EXPECT_GT(count_shards(capture, "float32"), 10U);
    EXPECT_GT(count_shards(capture, "bfloat16"), 5U);
    EXPECT_GT(count_shards(capture, "int8"), 2U);
}

TEST_P(EngineShards, RollOverWhereTheHeaderIsFull) {
    // Quotes take two bytes each in the header: about ten keys fill the first reserve of 64 KiB.
    const std::vector<Stream> streams{{std::string(3000, '"'), false}};
    Capture capture(GetParam(), small_options(), streams);
    for (int i = 0; i < 100; ++i) capture.submit(DType::u8, {10});
    capture.close_and_compare();
    const std::size_t shards = count_shards(capture, "uint8");
    EXPECT_GT(shards, 1U);
    EXPECT_LT(shards, 5U);  // the later reserves are larger
    EXPECT_EQ(read_shard(capture.folder() / "activations-uint8-00000.safetensors").data_start, 64U << 10);
    EXPECT_GT(read_shard(capture.folder() / "activations-uint8-00001.safetensors").data_start, 64U << 10);
}

TEST_P(EngineShards, AnIdLongerThanTheFirstReserve) {
    const std::vector<Stream> streams{{std::string(100'000, 'x'), false}};
    Capture capture(GetParam(), small_options(), streams);
    for (int i = 0; i < 3; ++i) capture.submit(DType::u8, {10});
    capture.close_and_compare();
}

// Two lanes take a ring of one block from each other at every record: each block is handed over with a tail
// that is aligned to nothing, and the next one of its lane begins with it. In the file nothing may show.
TEST_P(EngineShards, EarlyHandOverLeavesNoHoleAndNoRepetition) {
    for (const std::size_t blocks : {1U, 2U}) {
        Capture capture(GetParam(), small_options(blocks));
        std::map<DType, std::string> naive;
        for (std::int64_t i = 0; i < 150; ++i) {
            const DType dtype =
                std::vector{DType::u8, DType::i16, DType::f32}[static_cast<std::size_t>(i % 3)];
            const OwnedTensor tensor = contiguous_tensor(capture.random, dtype, {1 + i * i % 2311});
            capture.submit(capture.next(), keep_all(tensor.view), dtype);
            naive[dtype] += testing_support::as_text(tensor.memory.data(), tensor.memory.size());
        }
        capture.close_and_compare();
        for (const auto& [dtype, bytes] : naive) {
            const std::string path = capture.folder() / shard_name(dtype, 0);
            const std::string file = read_file(path);
            ASSERT_TRUE(file.substr(read_shard(path).data_start) == bytes) << path;
        }
    }
}

// The tail is carried more than once where a lane gets only a few bytes before the next hand-over.
TEST_P(EngineShards, TinyPiecesBetweenHandOvers) {
    Capture capture(GetParam(), small_options(1));
    for (int i = 0; i < 400; ++i) {
        capture.submit(DType::u8, {i % 5});
        capture.submit(DType::f64, {i % 3});
    }
    capture.close_and_compare();
}

TEST_P(EngineShards, RecordsThatEndExactlyWithABlock) {
    Capture capture(GetParam(), small_options(2));
    for (const std::int64_t size : {4096, 4096, 8192, 1, 4095, 0, 4096, 2048, 2048, 0})
        capture.submit(DType::u8, {size});
    capture.close_and_compare();
}

TEST_P(EngineShards, EveryRecordOfAShardHasAnEntryInItsJournal) {
    EngineOptions options = small_options();
    options.shard_bytes = 3000;
    Capture capture(GetParam(), options);
    for (std::int64_t i = 0; i < 20; ++i) capture.submit(DType::u8, {500});
    capture.close_and_compare();
    for (const Record& record : capture.engine->records()) {
        const std::string journal =
            read_file(capture.folder() / (testing_support::shard_of(record) + ".journal"));
        // The last twelve bytes of an entry: half of its size, and the checksum.
        const std::string crc{static_cast<char>(record.crc), static_cast<char>(record.crc >> 8),
                              static_cast<char>(record.crc >> 16), static_cast<char>(record.crc >> 24)};
        EXPECT_NE(journal.find(std::string("\xF4\x01\0\0\0\0\0\0", 8) + crc), std::string::npos);
    }
}

// The file is as long as its tensors: no trace of the alignment that O_DIRECT asks for.
TEST_P(EngineShards, FilesEndWithTheirLastTensor) {
    Capture capture(GetParam(), small_options());
    capture.submit(DType::u8, {4097});
    capture.close_and_compare();
    EXPECT_EQ(std::filesystem::file_size(capture.folder() / "activations-uint8-00000.safetensors"),
              (64U << 10) + 4097);
}

}  // namespace
}  // namespace nsf
