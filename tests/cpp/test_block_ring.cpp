#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/block_ring.hpp"

namespace nsf {
namespace {

TEST(BlockRing, RoundsTheRingDownToWholeBlocks) {
    const BlockRing ring(3 * 8192 + 8191, 8192);
    EXPECT_EQ(ring.block_bytes(), 8192U);
    EXPECT_EQ(ring.block_count(), 3U);
    EXPECT_EQ(ring.free_blocks(), 3U);
}

TEST(BlockRing, RefusesSizesThatMakeNoRing) {
    EXPECT_THROW(BlockRing(4096, 0), std::invalid_argument);
    EXPECT_THROW(BlockRing(4096, 100), std::invalid_argument);
    EXPECT_THROW(BlockRing(8192, 4097), std::invalid_argument);
    EXPECT_THROW(BlockRing(0, 4096), std::invalid_argument);
    try {
        const BlockRing ring(4095, 8192);
        FAIL() << "a ring smaller than a block";
    } catch (const std::invalid_argument& error) {
        const std::string message = error.what();
        EXPECT_NE(message.find("4095"), std::string::npos) << message;
        EXPECT_NE(message.find("8192"), std::string::npos) << message;
    }
}

TEST(BlockRing, SaysWhenTheMemoryCannotBeHad) {
    constexpr std::size_t too_much = std::size_t{1} << 62;
    EXPECT_THROW(BlockRing(too_much, too_much), std::bad_alloc);
}

TEST(BlockRing, BlocksAreAlignedAndApart) {
    BlockRing ring(5 * 4096, 4096);
    std::set<std::byte*> starts;
    for (std::size_t i = 0; i < 5; ++i) {
        Block& block = ring.acquire();
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block.data) % alignment, 0U);
        EXPECT_EQ(block.used, 0U);
        EXPECT_TRUE(block.segments.empty());
        std::memset(block.data, static_cast<int>(i), 4096);
        starts.insert(block.data);
    }
    EXPECT_EQ(starts.size(), 5U);
    EXPECT_EQ(ring.free_blocks(), 0U);
    for (const std::byte* a : starts) {
        for (const std::byte* b : starts) EXPECT_TRUE(a == b || a + 4096 <= b || b + 4096 <= a);
    }
}

TEST(BlockRing, ABlockGoesRoundAndComesBackEmpty) {
    BlockRing ring(4096, 4096);
    Block& block = ring.acquire();
    block.used = 17;
    block.segments.push_back({});
    ring.submit(block);
    EXPECT_EQ(ring.free_blocks(), 0U);
    Block* full = ring.next();
    ASSERT_EQ(full, &block);
    EXPECT_EQ(full->used, 17U);
    EXPECT_EQ(full->segments.size(), 1U);
    ring.recycle(*full);
    EXPECT_EQ(ring.free_blocks(), 1U);
    Block& again = ring.acquire();
    EXPECT_EQ(&again, &block);
    EXPECT_EQ(again.used, 0U);
    EXPECT_TRUE(again.segments.empty());
}

// A writer that keeps up works with the few blocks that are warm; the others cost no memory.
TEST(BlockRing, TakesAUsedBlockBeforeAFreshOne) {
    BlockRing ring(3 * 4096, 4096);
    EXPECT_EQ(ring.touched_blocks(), 0U);
    for (int round = 0; round < 5; ++round) {
        Block& block = ring.acquire();
        EXPECT_EQ(ring.free_blocks(), 2U);
        ring.submit(block);
        ring.recycle(*ring.next());
    }
    EXPECT_EQ(ring.touched_blocks(), 1U);
    EXPECT_EQ(ring.free_blocks(), 3U);
    Block& first = ring.acquire();
    Block& second = ring.acquire();
    EXPECT_NE(&first, &second);
    EXPECT_EQ(ring.touched_blocks(), 2U);
    EXPECT_EQ(ring.free_blocks(), 1U);
}

TEST(BlockRing, StopComesAfterEverythingSubmittedBeforeIt) {
    BlockRing ring(4 * 4096, 4096);  // full and a stop on top
    std::vector<Block*> blocks;
    for (int i = 0; i < 4; ++i) blocks.push_back(&ring.acquire());
    for (Block* block : blocks) ring.submit(*block);
    ring.stop();
    for (Block* block : blocks) EXPECT_EQ(ring.next(), block);
    EXPECT_EQ(ring.next(), nullptr);
}

TEST(BlockRing, CheckedBlocksComeInOrderAndThenTheEnd) {
    BlockRing ring(4 * 4096, 4096);
    std::vector<Block*> blocks;
    for (int i = 0; i < 4; ++i) {
        blocks.push_back(&ring.acquire());
        ring.submit(*blocks.back());
    }
    ring.stop();
    while (Block* block = ring.next()) ring.hand_on(*block);
    ring.stop_checked();
    EXPECT_EQ(ring.free_blocks(), 0U);
    for (Block* block : blocks) {
        ASSERT_EQ(ring.next_checked(), block);
        block->sound = false;
        ring.recycle(*block);
    }
    EXPECT_EQ(ring.next_checked(), nullptr);
    EXPECT_EQ(ring.free_blocks(), 4U);
    EXPECT_TRUE(ring.acquire().sound);
}

TEST(BlockRing, AMarkComesBehindWhatWasSubmittedAndThereIsOneAtATime) {
    BlockRing ring(2 * 4096, 4096);
    Block& first = ring.acquire();
    Block& second = ring.acquire();
    ring.submit(first);
    ring.submit(second);
    EXPECT_TRUE(ring.mark());
    EXPECT_FALSE(ring.mark());
    ring.stop();
    EXPECT_EQ(ring.next(), &first);
    EXPECT_EQ(ring.next(), &second);
    Block* mark = ring.next();
    ASSERT_TRUE(ring.is_mark(*mark));
    EXPECT_FALSE(ring.is_mark(first));
    for (Block* block : {&first, &second, mark}) ring.hand_on(*block);
    ring.stop_checked();
    for (int i = 0; i < 3; ++i) ring.recycle(*ring.next_checked());
    EXPECT_EQ(ring.next_checked(), nullptr);
    EXPECT_EQ(ring.free_blocks(), 2U);
    EXPECT_TRUE(ring.mark());
}

TEST(BlockRing, StopOfAnEmptyRing) {
    BlockRing ring(4096, 4096);
    ring.stop();
    EXPECT_EQ(ring.next(), nullptr);
}

// Producer and writer at their own pace; every byte and every field arrives.
TEST(BlockRing, TwoThreads) {
    constexpr std::uint64_t rounds = 5'000;
    for (const std::size_t blocks : {std::size_t{1}, std::size_t{3}}) {
        BlockRing ring(blocks * 4096, 4096);
        std::uint64_t wrong = 0;
        std::uint64_t received = 0;
        std::thread writer([&] {
            while (Block* block = ring.next()) {
                const std::size_t size = received % 4097;
                bool good = block->used == size && block->offset == received * 4096 &&
                            block->segments.size() == received % 5;
                for (std::size_t i = 0; i < size; i += 61) {
                    good = good && block->data[i] == static_cast<std::byte>(received + i);
                }
                if (!good) ++wrong;
                ++received;
                ring.recycle(*block);
            }
        });
        for (std::uint64_t round = 0; round < rounds; ++round) {
            Block& block = ring.acquire();
            EXPECT_LT(ring.free_blocks(), blocks);
            block.used = round % 4097;
            block.offset = round * 4096;
            block.segments.resize(round % 5);
            for (std::size_t i = 0; i < block.used; ++i) block.data[i] = static_cast<std::byte>(round + i);
            ring.submit(block);
        }
        ring.stop();
        writer.join();
        EXPECT_EQ(received, rounds);
        EXPECT_EQ(wrong, 0U);
        EXPECT_EQ(ring.free_blocks(), blocks);
    }
}

}  // namespace
}  // namespace nsf
