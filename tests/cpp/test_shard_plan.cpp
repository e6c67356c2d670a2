#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>

#include "core/shard_plan.hpp"

namespace nsf {
namespace {

constexpr std::size_t entry = 300;  // a usual bound for one record's place in the header

// Places a record and checks everything that must hold whatever came before.
class Checker {
  public:
    explicit Checker(std::uint64_t shard_bytes) : plan_(shard_bytes), shard_bytes_(shard_bytes) {}

    Placement place(std::uint64_t bytes, std::size_t bound) {
        const bool announced = plan_.would_open_shard(bytes, bound);
        const Placement placement = plan_.place(bytes, bound);
        EXPECT_EQ(placement.opens_shard, announced);
        if (placement.opens_shard) {
            EXPECT_EQ(placement.shard, opened_);
            EXPECT_EQ(placement.offset, 0U);
            EXPECT_EQ(placement.reserve % alignment, 0U);
            EXPECT_GE(placement.reserve, ShardPlan::first_reserve);
            const std::size_t needed = (header_base_bytes + bound + alignment - 1) / alignment * alignment;
            if (opened_ == 0) {
                EXPECT_EQ(placement.reserve, std::max(ShardPlan::first_reserve, needed));
            } else {
                EXPECT_LE(placement.reserve, std::max(reserve_ * 4, needed));
                EXPECT_LE(placement.reserve, std::max(ShardPlan::largest_reserve, needed));
            }
            ++opened_;
            reserve_ = placement.reserve;
            header_ = header_base_bytes;
            data_ = 0;
        }
        EXPECT_EQ(placement.shard, opened_ - 1);
        EXPECT_EQ(placement.reserve, reserve_);
        EXPECT_EQ(placement.offset, data_);
        const bool alone = data_ == 0;
        header_ += bound;
        data_ += bytes;
        EXPECT_LE(header_, reserve_);
        EXPECT_TRUE(alone || data_ <= shard_bytes_) << data_;
        return placement;
    }

    std::uint32_t shards() const { return opened_; }

  private:
    ShardPlan plan_;
    std::uint64_t shard_bytes_;
    std::uint32_t opened_ = 0;
    std::size_t reserve_ = 0;
    std::size_t header_ = 0;
    std::uint64_t data_ = 0;
};

TEST(ShardPlan, TheFirstRecordOpensTheFirstShard) {
    Checker plan(1000);
    const Placement first = plan.place(10, entry);
    EXPECT_TRUE(first.opens_shard);
    EXPECT_EQ(first.shard, 0U);
    EXPECT_EQ(first.reserve, 64U << 10);
    EXPECT_FALSE(plan.place(10, entry).opens_shard);
}

TEST(ShardPlan, RollsOverWhereTheNextRecordWouldNotFit) {
    Checker plan(1000);
    plan.place(600, entry);
    EXPECT_FALSE(plan.place(400, entry).opens_shard);  // exactly full
    EXPECT_FALSE(plan.place(0, entry).opens_shard);    // nothing always fits
    EXPECT_TRUE(plan.place(1, entry).opens_shard);
    EXPECT_TRUE(plan.place(1000, entry).opens_shard);
}

TEST(ShardPlan, ALargeRecordGetsAShardOfItsOwn) {
    Checker plan(1000);
    EXPECT_TRUE(plan.place(5000, entry).opens_shard);
    EXPECT_TRUE(plan.place(1, entry).opens_shard);
    EXPECT_TRUE(plan.place(1001, entry).opens_shard);
    EXPECT_TRUE(plan.place(5000, entry).opens_shard);
    EXPECT_TRUE(plan.place(10, entry).opens_shard);
    EXPECT_FALSE(plan.place(10, entry).opens_shard);
}

TEST(ShardPlan, RollsOverWhereTheHeaderIsFull) {
    Checker plan(std::uint64_t{1} << 40);
    const std::size_t fit = ((64U << 10) - header_base_bytes) / entry;
    for (std::size_t i = 0; i < fit; ++i) EXPECT_EQ(plan.place(4, entry).shard, 0U);
    EXPECT_TRUE(plan.place(4, entry).opens_shard);
}

TEST(ShardPlan, AnEntryLargerThanTheReserveGetsALargerOne) {
    Checker plan(1000);
    EXPECT_EQ(plan.place(1, 100'000).reserve, 102'400U);
    EXPECT_EQ(plan.place(1, 100'000).shard, 1U);
    EXPECT_GE(plan.place(1, 20 << 20).reserve, 20U << 20);  // beyond the largest reserve
    plan.place(1, entry);
}

// A long decode: many small records. The header's reserve grows with them, and the shards stay few.
TEST(ShardPlan, LongDecodesFillLargeShards) {
    Checker plan(std::uint64_t{4} << 30);
    for (int i = 0; i < 1'000'000; ++i) plan.place(1536, entry);
    // Reserves 64 KiB, 256 KiB, 1 MiB, 4 MiB, then 16 MiB for some 56,000 records each.
    EXPECT_LE(plan.shards(), 4U + (1'000'000U - 18'000U) / 55'000U + 1U);
}

// The reserve is no larger than a whole shard of such records needs.
TEST(ShardPlan, ShortHeadersForLargeRecords) {
    Checker plan(std::uint64_t{1} << 30);
    for (int i = 0; i < 100; ++i) EXPECT_EQ(plan.place(std::uint64_t{100} << 20, entry).reserve, 64U << 10);
    EXPECT_EQ(plan.shards(), 10U);
}

TEST(ShardPlan, ExtremeShardSizes) {
    for (const std::uint64_t shard_bytes :
         {std::uint64_t{0}, std::uint64_t{1}, std::numeric_limits<std::uint64_t>::max() - 1,
          std::numeric_limits<std::uint64_t>::max()}) {
        Checker plan(shard_bytes);
        for (int i = 0; i < 2'000; ++i) plan.place(i % 3 == 0 ? 0 : 1, entry);
        plan.place(std::uint64_t{1} << 62, entry);
        plan.place(std::uint64_t{1} << 62, entry);
        plan.place(1, entry);
    }
}

TEST(ShardPlan, OnlyZeroSizeRecords) {
    Checker plan(1000);
    for (int i = 0; i < 10'000; ++i) plan.place(0, entry);
    EXPECT_GT(plan.shards(), 1U);
    EXPECT_LT(plan.shards(), 30U);
}

TEST(ShardPlan, AnyMixture) {
    std::mt19937_64 random(11);
    for (int run = 0; run < 200; ++run) {
        Checker plan(std::uint64_t{1} << (random() % 24));
        for (int i = 0; i < 500; ++i) {
            const std::uint64_t bytes = random() % 8 == 0 ? 0 : random() >> (40 + random() % 24);
            const std::size_t bound = random() % 50 == 0 ? random() % 300'000 : 150 + random() % 400;
            plan.place(bytes, bound);
        }
    }
}

TEST(ShardPlan, WithoutFilesThereIsOneShard) {
    ShardPlan plan = ShardPlan::unbounded();
    std::uint64_t offset = 0;
    for (std::uint64_t i = 0; i < 100'000; ++i) {
        const Placement placement = plan.place(i << 20, 100'000);
        EXPECT_EQ(placement.opens_shard, i == 0);
        EXPECT_EQ(placement.shard, 0U);
        EXPECT_EQ(placement.offset, offset);
        offset += i << 20;
    }
}

}  // namespace
}  // namespace nsf
