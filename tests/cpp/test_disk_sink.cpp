#include <gtest/gtest.h>

#include <cerrno>
#include <filesystem>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/sink.hpp"
#include "made_block.hpp"
#include "shard_reader.hpp"
#include "temp_folder.hpp"

namespace nsf {
namespace {

using testing_support::byte_record;
using testing_support::MadeBlock;
using testing_support::read_file;
using testing_support::read_shard;
using testing_support::ShardFile;
using testing_support::TempFolder;
using Names = std::vector<std::string>;

const std::vector<Stream> streams{{"hook", false}};

// As the writer thread does it.
void process(Sink& sink, MadeBlock& made) {
    sink.write(made.block);
    for (Segment& segment : made.block.segments) {
        if (segment.last) sink.add(segment.record);
    }
    sink.flush(made.block.dtype);
}

void store(Sink& sink, DType dtype, std::uint32_t shard, std::uint32_t step, const std::string& bytes) {
    MadeBlock made(dtype, shard);
    made.append(byte_record(step, 0, bytes.size(), dtype), bytes);
    process(sink, made);
}

TEST(DiskSink, MakesNoFileBeforeTheFirstBlock) {
    const TempFolder folder;
    DiskSink sink(folder.path(), true, streams);
    EXPECT_TRUE(folder.names().empty());
    sink.close();
    EXPECT_TRUE(folder.names().empty());
}

TEST(DiskSink, AShardForEachDtype) {
    const TempFolder folder;
    DiskSink sink(folder.path(), true, streams);
    store(sink, DType::f32, 0, 1, "12345678");
    store(sink, DType::u8, 0, 2, "abc");
    EXPECT_EQ(folder.names(), (Names{"activations-float32-00000.safetensors.journal",
                                     "activations-float32-00000.safetensors.partial",
                                     "activations-uint8-00000.safetensors.journal",
                                     "activations-uint8-00000.safetensors.partial"}));
    sink.close();
    EXPECT_EQ(folder.names(),
              (Names{"activations-float32-00000.safetensors", "activations-float32-00000.safetensors.journal",
                     "activations-uint8-00000.safetensors", "activations-uint8-00000.safetensors.journal"}));
    const ShardFile floats = read_shard(folder / "activations-float32-00000.safetensors");
    EXPECT_EQ(floats.tensors.at(0).first, "hook/000001");
    EXPECT_EQ(floats.tensors.at(0).second, (testing_support::StoredTensor{"F32", {2}, "12345678"}));
    EXPECT_EQ(floats.data_start, 8192U);
    EXPECT_EQ(read_shard(folder / "activations-uint8-00000.safetensors").tensors.at(0).second.bytes, "abc");
    sink.close();  // nothing is left to do
}

TEST(DiskSink, TheNextShardPublishesTheOneBefore) {
    const TempFolder folder;
    DiskSink sink(folder.path(), false, streams);
    store(sink, DType::u8, 0, 0, "one");
    store(sink, DType::f32, 0, 0, "1234");
    store(sink, DType::u8, 1, 1, "two");
    EXPECT_EQ(read_shard(folder / "activations-uint8-00000.safetensors").tensors.at(0).second.bytes, "one");
    EXPECT_TRUE(std::filesystem::exists(folder / "activations-uint8-00001.safetensors.partial"));
    EXPECT_TRUE(std::filesystem::exists(folder / "activations-float32-00000.safetensors.partial"));
    sink.close();
    EXPECT_EQ(read_shard(folder / "activations-uint8-00001.safetensors").tensors.at(0).second.bytes, "two");
}

TEST(DiskSink, ARecordOverSeveralBlocksAndAnIncompleteOne) {
    const TempFolder folder;
    DiskSink sink(folder.path(), true, streams);
    const std::string part(MadeBlock::capacity, 'x');
    const Record record = byte_record(0, 0, 2 * MadeBlock::capacity + 100);
    const Record cut_short = byte_record(1, record.bytes, 1 << 30);
    MadeBlock first(DType::u8, 0);
    MadeBlock second(DType::u8, 0, MadeBlock::capacity);
    MadeBlock third(DType::u8, 0, 2 * MadeBlock::capacity);
    process(sink, first.append(record, part, false));
    process(sink, second.append(record, part, false));
    process(sink, third.append(record, std::string(100, 'x')).append(cut_short, "lost", false));
    sink.close();
    const ShardFile file = read_shard(folder / "activations-uint8-00000.safetensors");
    ASSERT_EQ(file.tensors.size(), 1U);
    EXPECT_EQ(file.tensors[0].second.bytes, std::string(record.bytes, 'x'));
}

// Entries reach the journal with flush(), block by block: what a crash leaves behind can be read.
TEST(DiskSink, TheJournalGrowsWithEveryBlock) {
    const TempFolder folder;
    DiskSink sink(folder.path(), true, streams);
    std::size_t before = 32;
    for (std::uint32_t step = 0; step < 3; ++step) {
        MadeBlock made(DType::u8, 0, 4096 * step);
        made.append(byte_record(step, 4096 * step, 4096), std::string(4096, 'x'));
        process(sink, made);
        const std::size_t size = read_file(folder / "activations-uint8-00000.safetensors.journal").size();
        EXPECT_GT(size, before);
        before = size;
    }
}

TEST(DiskSink, CloseTriesEveryShardAndThenThrows) {
    const TempFolder folder;
    DiskSink sink(folder.path(), true, streams);
    store(sink, DType::f64, 0, 0, "12345678");
    store(sink, DType::f32, 0, 0, "1234");
    store(sink, DType::u8, 0, 0, "abc");
    // A folder stands where the second shard is to go.
    std::filesystem::create_directory(folder / "activations-float32-00000.safetensors");
    try {
        sink.close();
        FAIL() << "published onto a folder";
    } catch (const EngineError& error) {
        EXPECT_EQ(error.error_number(), EISDIR) << error.what();
        EXPECT_NE(std::string(error.what()).find("activations-float32-00000.safetensors.partial"),
                  std::string::npos);
    }
    EXPECT_EQ(read_shard(folder / "activations-float64-00000.safetensors").tensors.size(), 1U);
    EXPECT_EQ(read_shard(folder / "activations-uint8-00000.safetensors").tensors.size(), 1U);
    EXPECT_TRUE(std::filesystem::exists(folder / "activations-float32-00000.safetensors.partial"));
    EXPECT_TRUE(std::filesystem::exists(folder / "activations-float32-00000.safetensors.journal"));
    EXPECT_NO_THROW(sink.close());  // that shard has been given up
}

TEST(DiskSink, AFolderThatIsNotThere) {
    const TempFolder folder;
    DiskSink sink(folder / "missing", true, streams);
    MadeBlock made(DType::u8, 0);
    made.append(byte_record(0, 0, 3), "abc");
    try {
        sink.write(made.block);
        FAIL() << "wrote into no folder";
    } catch (const EngineError& error) {
        EXPECT_EQ(error.error_number(), ENOENT);
        EXPECT_NE(std::string(error.what()).find("missing"), std::string::npos);
    }
    EXPECT_NO_THROW(sink.close());
}

}  // namespace
}  // namespace nsf
