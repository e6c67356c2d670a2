#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/sink.hpp"
#include "made_block.hpp"

namespace nsf {
namespace {

using testing_support::byte_record;
using testing_support::MadeBlock;

// As the writer thread does it; gives the records as the sink has placed them.
std::vector<Record> process(Sink& sink, MadeBlock& made) {
    sink.write(made.block);
    std::vector<Record> placed;
    for (Segment& segment : made.block.segments) {
        if (!segment.last) continue;
        sink.add(segment.record);
        placed.push_back(segment.record);
    }
    sink.flush(made.block.dtype);
    return placed;
}

std::string bytes_of(const MemorySink& sink, const Record& record) {
    const std::shared_ptr<Slab> slab = sink.slab(record.shard);
    EXPECT_LE(record.offset + record.bytes, slab->size);
    return {reinterpret_cast<const char*>(slab->data) + record.offset,
            static_cast<std::size_t>(record.bytes)};
}

TEST(MemorySink, SmallRecordsShareASlab) {
    MemorySink sink;
    MadeBlock made(DType::u8, 0);
    made.append(byte_record(0, 0, 3), "abc")
        .append(byte_record(1, 3, 0), "")
        .append(byte_record(2, 3, 5), "defgh");
    const std::vector<Record> placed = process(sink, made);
    ASSERT_EQ(placed.size(), 3U);
    EXPECT_EQ(bytes_of(sink, placed[0]), "abc");
    EXPECT_EQ(bytes_of(sink, placed[1]), "");
    EXPECT_EQ(bytes_of(sink, placed[2]), "defgh");
    EXPECT_EQ(placed[0].shard, placed[2].shard);
    for (const Record& record : placed) {
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(sink.slab(record.shard)->data + record.offset) % 64, 0U);
    }
}

TEST(MemorySink, LargeRecordsHaveASlabOfTheirOwn) {
    MemorySink sink;
    constexpr std::size_t size = 5 * MadeBlock::capacity + 17;
    const Record record = byte_record(0, 0, size);
    std::vector<Record> placed;
    std::string expected;
    for (std::size_t part = 0; part < 6; ++part) {
        const std::string bytes(part < 5 ? MadeBlock::capacity : 17, static_cast<char>('a' + part));
        expected += bytes;
        MadeBlock made(DType::u8, 0, part * MadeBlock::capacity);
        const std::vector<Record> whole = process(sink, made.append(record, bytes, part == 5));
        EXPECT_EQ(whole.size(), part == 5 ? 1U : 0U);
        placed.insert(placed.end(), whole.begin(), whole.end());
    }
    EXPECT_EQ(sink.slab(placed.at(0).shard)->size, size);
    EXPECT_EQ(bytes_of(sink, placed.at(0)), expected);
}

// Each lane has a record that runs on; blocks of the lanes come in any order.
TEST(MemorySink, RecordsOfTwoDtypesRunOnSideBySide) {
    MemorySink sink;
    const Record bytes = byte_record(0, 0, 300'000);
    const Record floats = byte_record(0, 0, 80'000, DType::f32);
    MadeBlock a(DType::u8, 0);
    MadeBlock b(DType::f32, 0);
    MadeBlock c(DType::u8, 0);
    MadeBlock d(DType::f32, 0);
    const std::string full(MadeBlock::capacity, 'x');
    process(sink, a.append(bytes, full, false));
    process(sink, b.append(floats, std::string(40'000, 'f'), false));
    process(sink, c.append(bytes, full, false));
    const Record whole = process(sink, d.append(floats, std::string(40'000, 'g'))).at(0);
    EXPECT_EQ(bytes_of(sink, whole), std::string(40'000, 'f') + std::string(40'000, 'g'));
    std::size_t left = 300'000 - 2 * MadeBlock::capacity;
    while (left > 0) {
        const std::size_t piece = std::min(left, full.size());
        MadeBlock more(DType::u8, 0);
        left -= piece;
        const auto placed = process(sink, more.append(bytes, std::string(piece, 'x'), left == 0));
        if (left == 0) {
            EXPECT_EQ(bytes_of(sink, placed.at(0)), std::string(300'000, 'x'));
        }
    }
}

TEST(MemorySink, NothingIsEverOverwritten) {
    MemorySink sink;
    std::vector<Record> all;
    for (std::uint32_t step = 0; step < 400; ++step) {
        const std::size_t size = step * 37 % 20'000;
        MadeBlock made(DType::u8, 0);
        made.append(byte_record(step, 0, size), std::string(size, static_cast<char>(step)));
        made.append(byte_record(step, size, 1), "!");
        for (const Record& record : process(sink, made)) all.push_back(record);
    }
    std::set<std::uint32_t> slabs;
    for (std::size_t i = 0; i < all.size(); i += 2) {
        ASSERT_EQ(bytes_of(sink, all[i]), std::string(all[i].bytes, static_cast<char>(all[i].step)));
        ASSERT_EQ(bytes_of(sink, all[i + 1]), "!");
        slabs.insert(all[i].shard);
    }
    EXPECT_GT(slabs.size(), 1U);
    EXPECT_LT(slabs.size(), 10U);  // they are shared
}

TEST(MemorySink, ASlabOutlivesItsSink) {
    auto sink = std::make_unique<MemorySink>();
    MadeBlock made(DType::u8, 0);
    const Record record = process(*sink, made.append(byte_record(0, 0, 3), "abc")).at(0);
    const std::shared_ptr<Slab> slab = sink->slab(record.shard);
    sink->close();
    sink.reset();
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(slab->data) + record.offset, 3), "abc");
}

TEST(MemorySink, ThereIsNoSuchSlab) {
    const MemorySink sink;
    EXPECT_THROW(static_cast<void>(sink.slab(0)), std::out_of_range);
}

TEST(MemorySink, SlabsAreReadWhileOthersAreAdded) {
    MemorySink sink;
    MadeBlock first(DType::u8, 0);
    const Record record = process(sink, first.append(byte_record(0, 0, 3), "abc")).at(0);
    std::thread reader([&] {
        for (int i = 0; i < 1000; ++i) EXPECT_EQ(bytes_of(sink, record), "abc");
    });
    for (std::uint32_t step = 1; step < 100; ++step) {
        MadeBlock made(DType::u8, 0);
        process(sink, made.append(byte_record(step, 0, 50'000), std::string(50'000, 'x')));
    }
    reader.join();
}

}  // namespace
}  // namespace nsf
