#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <deque>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/safetensors_shard.hpp"
#include "shard_reader.hpp"
#include "temp_folder.hpp"

namespace nsf {
namespace {

using testing_support::aligned_bytes;
using testing_support::AlignedBytes;
using testing_support::read_file;
using testing_support::read_shard;
using testing_support::ShardFile;
using testing_support::TempFolder;

constexpr std::size_t reserve = 64 << 10;

// A block that holds `text` from `offset` on, with room up to the next multiple of the alignment.
struct OneBlock {
    OneBlock(const std::string& text, std::uint64_t offset)
        : memory(aligned_bytes(text.size() + alignment, '#')) {  // dirty behind the end
        std::memcpy(memory.get(), text.data(), text.size());
        block.data = memory.get();
        block.dtype = DType::u8;
        block.reserve = reserve;
        block.offset = offset;
        block.used = text.size();
    }

    AlignedBytes memory;
    Block block;
};

class SafetensorsShardTest : public ::testing::TestWithParam<bool> {
  protected:
    Record record(std::uint32_t stream, std::uint32_t step, Shape shape, std::uint64_t offset,
                  std::uint64_t bytes) {
        Record made;
        made.stream = stream;
        made.step = step;
        made.shape = &shapes_.emplace_back(std::move(shape));
        made.offset = offset;
        made.bytes = bytes;
        made.dtype = DType::u8;
        return made;
    }
    void add(SafetensorsShard& shard, const Record& record) { shard.add(record, streams_[record.stream]); }

    const TempFolder folder_;
    const std::string name_ = folder_ / "activations-uint8-00002.safetensors";
    const std::vector<Stream> streams_{
        {"a", false}, {"model.layers.1", true}, {"\"q\"\\\n\xE2\x86\x92", false}};

  private:
    std::deque<Shape> shapes_;
};

INSTANTIATE_TEST_SUITE_P(DirectAndBuffered, SafetensorsShardTest, ::testing::Bool());

TEST_P(SafetensorsShardTest, IsPartialUntilItIsPublished) {
    SafetensorsShard shard(folder_.path(), DType::u8, 2, reserve, GetParam());
    EXPECT_EQ(shard.number(), 2U);
    EXPECT_EQ(folder_.names(), (std::vector<std::string>{"activations-uint8-00002.safetensors.journal",
                                                         "activations-uint8-00002.safetensors.partial"}));
    EXPECT_EQ(read_file(name_ + ".partial"), std::string(reserve, ' '));
    shard.write(OneBlock("hello", 0).block);
    add(shard, record(0, 0, {5}, 0, 5));
    EXPECT_EQ(shard.data_bytes(), 5U);
    shard.flush_journal();
    shard.publish(streams_);
    EXPECT_EQ(folder_.names(), (std::vector<std::string>{"activations-uint8-00002.safetensors",
                                                         "activations-uint8-00002.safetensors.journal"}));
    const ShardFile file = read_shard(name_);
    EXPECT_EQ(file.data_start, reserve);
    ASSERT_EQ(file.tensors.size(), 1U);
    EXPECT_EQ(file.tensors[0].first, "a/000000");
    EXPECT_EQ(file.tensors[0].second, (testing_support::StoredTensor{"U8", {5}, "hello"}));
    EXPECT_EQ(file.metadata.at("format"), "pt");
    EXPECT_EQ(file.metadata.at("writer"), "neuroscope-fast");
    EXPECT_EQ(file.metadata.at("format_version"), "1");
}

TEST_P(SafetensorsShardTest, KeepsOrderKeysAndShapes) {
    SafetensorsShard shard(folder_.path(), DType::u8, 2, reserve, GetParam());
    shard.write(OneBlock("abcdef", 0).block);
    add(shard, record(1, 7, {}, 0, 1));
    add(shard, record(2, 0, {1, 2, 1}, 1, 2));
    add(shard, record(0, 0, {3, 0, 4}, 3, 0));
    Record scale = record(0, 1, {3}, 3, 3);
    scale.is_scale = true;
    scale.prompt = 4;
    scale.call = 5;
    add(shard, scale);
    shard.publish(streams_);
    const ShardFile file = read_shard(name_);
    const std::vector<std::pair<std::string, testing_support::StoredTensor>> expected = {
        {"model.layers.1/000007/input", {"U8", {}, "a"}},
        {"\"q\"\\\n\xE2\x86\x92/000000", {"U8", {1, 2, 1}, "bc"}},
        {"a/000000", {"U8", {3, 0, 4}, ""}},
        {"a/p4/c5/000001/scale", {"U8", {3}, "def"}}};
    EXPECT_EQ(file.tensors, expected);
}

// A block handed over early ends anywhere; the next one starts with its unaligned tail.
TEST_P(SafetensorsShardTest, ABlockRepeatsTheTailOfTheOneBefore) {
    SafetensorsShard shard(folder_.path(), DType::u8, 2, reserve, GetParam());
    const std::string first(5000, 'x');
    const std::string second(6000, 'y');
    shard.write(OneBlock(first, 0).block);
    add(shard, record(0, 0, {5000}, 0, 5000));
    shard.write(OneBlock(first.substr(4096) + second, 4096).block);
    add(shard, record(0, 1, {6000}, 5000, 6000));
    shard.publish(streams_);
    const ShardFile file = read_shard(name_);
    ASSERT_EQ(file.tensors.size(), 2U);
    EXPECT_EQ(file.tensors[0].second.bytes, first);
    EXPECT_EQ(file.tensors[1].second.bytes, second);
}

TEST_P(SafetensorsShardTest, OnlyWholeRecordsAreKept) {
    SafetensorsShard shard(folder_.path(), DType::u8, 2, reserve, GetParam());
    shard.write(OneBlock(std::string(4096, 'x'), 0).block);
    add(shard, record(0, 0, {100}, 0, 100));  // the rest belongs to a record that never became whole
    EXPECT_EQ(shard.data_bytes(), 100U);
    shard.publish(streams_);
    EXPECT_EQ(read_shard(name_).tensors.at(0).second.bytes, std::string(100, 'x'));
    EXPECT_EQ(std::filesystem::file_size(name_), reserve + 100);
}

TEST_P(SafetensorsShardTest, AShardWithoutARecordCanBeRead) {
    SafetensorsShard shard(folder_.path(), DType::u8, 2, reserve, GetParam());
    Block nothing = OneBlock("", 0).block;
    shard.write(nothing);
    shard.publish(streams_);
    EXPECT_TRUE(read_shard(name_).tensors.empty());
    EXPECT_EQ(std::filesystem::file_size(name_), reserve);
}

TEST_P(SafetensorsShardTest, AHeaderThatOutgrewItsReserveIsAnErrorThatLosesNothing) {
    SafetensorsShard shard(folder_.path(), DType::u8, 2, alignment, GetParam());
    OneBlock bytes(std::string(100, 'x'), 0);
    bytes.block.reserve = alignment;
    shard.write(bytes.block);
    for (std::uint32_t step = 0; step < 100; ++step) add(shard, record(0, step, {1}, step, 1));
    shard.flush_journal();
    EXPECT_THROW(shard.publish(streams_), EngineError);
    EXPECT_TRUE(std::filesystem::exists(name_ + ".partial"));
    EXPECT_TRUE(std::filesystem::exists(name_ + ".journal"));
    EXPECT_FALSE(std::filesystem::exists(name_));
}

TEST_P(SafetensorsShardTest, NeverReplacesAnOpenShard) {
    testing_support::write_file(name_ + ".partial", "precious");
    try {
        const SafetensorsShard shard(folder_.path(), DType::u8, 2, reserve, GetParam());
        FAIL() << "replaced a partial shard";
    } catch (const EngineError& error) {
        EXPECT_EQ(error.error_number(), EEXIST);
    }
    EXPECT_EQ(read_file(name_ + ".partial"), "precious");
}

// What the plan reserves for an entry must never be less than what publish() writes.
TEST(HeaderEntryBound, HoldsForTheLongestEntry) {
    const TempFolder folder;
    const std::int64_t longest = std::numeric_limits<std::int64_t>::max();
    const std::vector<Stream> streams{{std::string(100, '\x01') + "\"\\", true}};
    for (std::size_t rank = 0; rank < 70; rank += 3) {
        Shape shape(rank, longest);
        if (rank > 0) shape[0] = 0;  // the bytes must agree with nothing: nobody reads this file
        Record record;
        record.prompt = record.call = record.step = std::numeric_limits<std::uint32_t>::max();
        record.shape = &shape;
        record.offset = std::numeric_limits<std::uint64_t>::max() >> 1;
        record.bytes = std::numeric_limits<std::uint64_t>::max() >> 1;
        record.dtype = DType::f8_e4m3fn;
        record.is_scale = true;
        const std::size_t bound = header_entry_bound(json_escape(streams[0].hook_id).size(), rank);
        for (const std::size_t entries : {1U, 5U, 40U}) {
            const std::size_t room =
                (header_base_bytes + entries * bound + alignment - 1) / alignment * alignment;
            SafetensorsShard shard(folder.path(), DType::f8_e4m3fn,
                                   static_cast<std::uint32_t>(rank * 100 + entries), room, false);
            for (std::size_t i = 0; i < entries; ++i) shard.add(record, streams[0]);
            try {
                shard.publish(streams);
            } catch (const EngineError& error) {  // the impossible size of the file may be refused, no more
                EXPECT_NE(error.error_number(), 0) << error.what();
            }
        }
    }
}

}  // namespace
}  // namespace nsf
