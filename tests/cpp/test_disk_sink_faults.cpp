#include <gtest/gtest.h>

#include <cerrno>
#include <filesystem>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/sink.hpp"
#include "fault_injection.hpp"
#include "made_block.hpp"
#include "shard_reader.hpp"
#include "temp_folder.hpp"

namespace nsf {
namespace {

using testing_support::byte_record;
using testing_support::Faults;
using testing_support::InjectFaults;
using testing_support::is_file;
using testing_support::MadeBlock;
using testing_support::TempFolder;
using testing_support::Verdict;

const std::vector<Stream> streams{{"hook", false}};

void store(Sink& sink, std::uint32_t shard, const std::string& bytes) {
    MadeBlock made(DType::u8, shard);
    made.append(byte_record(shard, 0, bytes.size()), bytes);
    sink.write(made.block);
    sink.add(made.block.segments[0].record);
    sink.flush(DType::u8);
}

int error_of_store(Sink& sink, std::uint32_t shard) {
    try {
        store(sink, shard, "abc");
    } catch (const EngineError& error) {
        return error.error_number();
    }
    return 0;
}

// After a failed fsync the kernel has forgotten the pages that it could not write, and the next fsync
// succeeds: a shard that failed once must not be published by a second attempt.
TEST(DiskSinkFaults, AShardWhoseBytesMayBeLostIsNeverPublished) {
    const TempFolder folder;
    int failures = 1;
    Faults hooks;
    hooks.fsync = [&](int descriptor) {
        return is_file(descriptor, ".partial") && failures-- > 0 ? Verdict::fail(EIO) : Verdict::pass();
    };
    const InjectFaults faults(hooks);
    DiskSink sink(folder.path(), true, streams);
    store(sink, 0, "abc");
    EXPECT_EQ(error_of_store(sink, 1), EIO);
    sink.close();
    EXPECT_FALSE(std::filesystem::exists(folder / "activations-uint8-00000.safetensors"));
    EXPECT_TRUE(std::filesystem::exists(folder / "activations-uint8-00000.safetensors.partial"));
    EXPECT_TRUE(std::filesystem::exists(folder / "activations-uint8-00000.safetensors.journal"));
}

TEST(DiskSinkFaults, CloseLeavesAShardPartialWhereItCannotBeMadeDurable) {
    for (const std::string failing : {".partial", ".journal"}) {
        const TempFolder folder;
        Faults hooks;
        hooks.fsync = [&](int descriptor) {
            return is_file(descriptor, failing) ? Verdict::fail(EIO) : Verdict::pass();
        };
        const InjectFaults faults(hooks);
        DiskSink sink(folder.path(), true, streams);
        store(sink, 0, "abc");
        EXPECT_THROW(sink.close(), EngineError);
        EXPECT_FALSE(std::filesystem::exists(folder / "activations-uint8-00000.safetensors"));
        EXPECT_TRUE(std::filesystem::exists(folder / "activations-uint8-00000.safetensors.partial"));
    }
}

// The header's place is written when the shard opens: a disk that fills up later cannot take it away.
TEST(DiskSinkFaults, WhatWasWrittenBeforeTheDiskWasFullIsPublished) {
    const TempFolder folder;
    bool full = false;
    Faults hooks;
    hooks.pwrite = [&](int descriptor, std::size_t, off_t offset) {
        return full && offset >= 8192 && is_file(descriptor, ".partial") ? Verdict::fail(ENOSPC)
                                                                         : Verdict::pass();
    };
    const InjectFaults faults(hooks);
    DiskSink sink(folder.path(), true, streams);
    store(sink, 0, std::string(4096, 'x'));
    full = true;
    MadeBlock more(DType::u8, 0, 4096);
    more.append(byte_record(1, 4096, 4096), std::string(4096, 'y'));
    EXPECT_THROW(sink.write(more.block), EngineError);
    sink.close();
    const auto file = testing_support::read_shard(folder / "activations-uint8-00000.safetensors");
    ASSERT_EQ(file.tensors.size(), 1U);
    EXPECT_EQ(file.tensors[0].second.bytes, std::string(4096, 'x'));
}

TEST(DiskSinkFaults, AShardThatCannotEvenHoldItsHeaderIsAnError) {
    const TempFolder folder;
    Faults hooks;
    hooks.pwrite = [](int descriptor, std::size_t, off_t) {
        return is_file(descriptor, ".partial") ? Verdict::fail(ENOSPC) : Verdict::pass();
    };
    const InjectFaults faults(hooks);
    DiskSink sink(folder.path(), true, streams);
    EXPECT_EQ(error_of_store(sink, 0), ENOSPC);
    sink.close();
    EXPECT_FALSE(std::filesystem::exists(folder / "activations-uint8-00000.safetensors"));
}

}  // namespace
}  // namespace nsf
