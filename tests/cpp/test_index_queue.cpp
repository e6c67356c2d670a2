#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/index_queue.hpp"

namespace nsf {
namespace {

// An 8-bit position wraps around every 256 pushes, a 16-bit one every 65,536; the engine's takes 32 bits.
template <typename Position>
class IndexQueueTest : public ::testing::Test {};
using Positions = ::testing::Types<std::uint8_t, std::uint16_t, std::uint32_t>;
TYPED_TEST_SUITE(IndexQueueTest, Positions);

TYPED_TEST(IndexQueueTest, GivesBackInOrder) {
    IndexQueue<TypeParam> queue(4);
    for (std::uint32_t i = 10; i < 14; ++i) EXPECT_TRUE(queue.push(i));
    for (std::uint32_t i = 10; i < 14; ++i) EXPECT_EQ(queue.pop(), i);
    EXPECT_EQ(queue.try_pop(), std::nullopt);
}

TYPED_TEST(IndexQueueTest, CapacityIsTheNextPowerOfTwo) {
    EXPECT_EQ(IndexQueue<TypeParam>(0).capacity(), 1U);
    EXPECT_EQ(IndexQueue<TypeParam>(1).capacity(), 1U);
    EXPECT_EQ(IndexQueue<TypeParam>(2).capacity(), 2U);
    EXPECT_EQ(IndexQueue<TypeParam>(33).capacity(), 64U);
    EXPECT_EQ(IndexQueue<TypeParam>(128).capacity(), 128U);
}

TYPED_TEST(IndexQueueTest, PushOntoAFullQueueIsRefusedAndOverwritesNothing) {
    IndexQueue<TypeParam> queue(2);
    EXPECT_TRUE(queue.push(1));
    EXPECT_TRUE(queue.push(2));
    EXPECT_FALSE(queue.push(3));
    EXPECT_EQ(queue.size(), 2U);
    EXPECT_EQ(queue.pop(), 1U);
    EXPECT_TRUE(queue.push(4));
    EXPECT_FALSE(queue.push(5));
    EXPECT_EQ(queue.pop(), 2U);
    EXPECT_EQ(queue.pop(), 4U);
}

TYPED_TEST(IndexQueueTest, CarriesEveryIndexIncludingTheLargest) {
    IndexQueue<TypeParam> queue(1);
    for (const std::uint32_t index : {0U, 1U, 0x7FFFFFFFU, 0xFFFFFFFFU}) {
        EXPECT_TRUE(queue.push(index));
        EXPECT_EQ(queue.try_pop(), index);
    }
}

// Every capacity and every fill level, past the wrap-around of the narrow positions.
TYPED_TEST(IndexQueueTest, CountsAcrossTheWrapAround) {
    for (std::size_t capacity = 1; capacity <= 128; capacity *= 2) {
        IndexQueue<TypeParam> queue(capacity);
        std::uint32_t pushed = 0;
        std::uint32_t popped = 0;
        for (std::size_t round = 0; round < 700; ++round) {
            const std::size_t fill = 1 + round % capacity;
            while (queue.size() < fill) ASSERT_TRUE(queue.push(pushed++));
            while (queue.size() > fill) ASSERT_EQ(queue.pop(), popped++);
            ASSERT_EQ(queue.size(), pushed - popped);
            if (fill == capacity) {
                ASSERT_FALSE(queue.push(999'999));
            }
            for (std::size_t i = 0; i < (fill + 1) / 2; ++i) ASSERT_EQ(queue.try_pop(), popped++);
        }
        while (popped < pushed) EXPECT_EQ(queue.pop(), popped++);
        EXPECT_EQ(queue.size(), 0U);
    }
}

// One thread pushes, the other sleeps in pop() whenever it is faster. What the producer wrote before a push
// must be there after the pop: plain memory, so that ThreadSanitizer sees a missing order.
TYPED_TEST(IndexQueueTest, TwoThreadsKeepOrderAndVisibility) {
    constexpr std::uint32_t count = 100'000;
    constexpr std::uint32_t slots = 256;  // more than the capacity: a slot is free again when it comes round
    IndexQueue<TypeParam> queue(64);
    std::vector<std::uint64_t> payload(slots);
    std::thread producer([&] {
        for (std::uint32_t i = 0; i < count; ++i) {
            // A slot may be written once its last user has been popped: at most 64 are in the queue.
            while (queue.size() >= 64) std::this_thread::yield();
            payload[i % slots] = std::uint64_t{i} * 3;
            EXPECT_TRUE(queue.push(i));
        }
    });
    std::uint32_t wrong = 0;
    for (std::uint32_t i = 0; i < count; ++i) {
        const std::uint32_t index = queue.pop();
        if (index != i || payload[index % slots] != std::uint64_t{i} * 3) ++wrong;
    }
    producer.join();
    EXPECT_EQ(wrong, 0U);
    EXPECT_EQ(queue.size(), 0U);
}

// The engine's own use: two queues in a circle, both ends sleeping in turn. A lost wake-up would hang here.
TYPED_TEST(IndexQueueTest, TwoQueuesInACircleNeverLoseAWakeUp) {
    constexpr std::uint32_t rounds = 30'000;
    for (const std::uint32_t blocks : {1U, 3U}) {
        IndexQueue<TypeParam> free(blocks);
        IndexQueue<TypeParam> full(blocks);
        std::array<std::uint32_t, 4> contents{};
        for (std::uint32_t i = 0; i < blocks; ++i) ASSERT_TRUE(free.push(i));
        std::uint32_t wrong = 0;
        std::thread consumer([&] {
            for (std::uint32_t i = 0; i < rounds; ++i) {
                const std::uint32_t block = full.pop();
                if (contents[block] != i) ++wrong;
                free.push(block);
            }
        });
        for (std::uint32_t i = 0; i < rounds; ++i) {
            const std::uint32_t block = free.pop();
            contents[block] = i;
            full.push(block);
        }
        consumer.join();
        EXPECT_EQ(wrong, 0U);
        EXPECT_EQ(free.size(), blocks);
    }
}

TEST(IndexQueue, RefusesACapacityBeyondHalfTheRangeOfItsPosition) {
    EXPECT_THROW(IndexQueue<std::uint8_t>(129), std::length_error);
    EXPECT_THROW(IndexQueue<std::uint16_t>(32'769), std::length_error);
    EXPECT_NO_THROW(IndexQueue<std::uint16_t>(32'768));
}

}  // namespace
}  // namespace nsf
