#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/record_table.hpp"

namespace nsf {
namespace {

using Names = std::vector<std::string>;

// Records whose shapes and notes are gone once the table is made.
class Records {
  public:
    Record& add(std::uint32_t stream, std::uint32_t step, Shape shape, const std::string& note = "") {
        shapes_.push_back(std::make_unique<Shape>(std::move(shape)));
        Record record;
        record.sequence = sequence_++;
        record.stream = stream;
        record.step = step;
        record.shape = shapes_.back().get();
        if (!note.empty()) {
            notes_.push_back(std::make_unique<std::string>(note));
            record.note = notes_.back().get();
        }
        record.dtype = record.source = DType::f32;
        record.bytes = 4;
        all.push_back(record);
        return all.back();
    }
    // The scales of the record that was added last, which becomes int8.
    Record& add_scale() {
        all.back().dtype = DType::i8;
        Record scale = all.back();
        scale.dtype = DType::f32;
        scale.is_scale = true;
        all.push_back(scale);
        return all.back();
    }

    std::vector<Record> all;

  private:
    std::uint64_t sequence_ = 0;
    std::vector<std::unique_ptr<Shape>> shapes_;
    std::vector<std::unique_ptr<std::string>> notes_;
};

const RecordTable::Published all_published = [](const std::string&) { return true; };

RecordedHook hook(const std::string& id, std::optional<std::uint32_t> input,
                  std::optional<std::uint32_t> output, const std::string& part = "") {
    return {"{\"hook_id\":\"" + id + "\"", part, input, output};
}

TEST(RecordTable, ALineHasTheFieldsThatAreNotAtTheirDefault) {
    auto records = std::make_unique<Records>();
    records->add(0, 0, {1, 2});
    Record& full = records->add(0, 12, {}, R"({"positions":[3],"real_tokens":[[0,4]]})");
    full.prompt = 3;
    full.call = 4;
    full.source = DType::bf16;
    full.shard = 7;
    const RecordTable table(records->all, {{"a\"b"}}, {hook("x", {}, 0, ",\"heads\":[1]")}, {},
                            all_published);
    records.reset();
    EXPECT_EQ(table.count(0), 2U);
    EXPECT_EQ(table.lines(0),
              R"({"hook_id":"x","shape":[1,2],"dtype":"float32","is_input":false,"heads":[1],)"
              R"("data":{"file":"activations-float32-00000.safetensors","key":"a\"b/000000"}},)"
              "\n      "
              R"({"hook_id":"x","shape":[],"dtype":"float32","is_input":false,"step":12,"prompt":3,"call":4,)"
              R"("positions":[3],"real_tokens":[[0,4]],"heads":[1],"source_dtype":"bfloat16",)"
              R"("data":{"file":"activations-float32-00007.safetensors","key":"a\"b/p3/c4/000012"}})");
}

TEST(RecordTable, RecordsInMemoryHaveNoFiles) {
    Records records;
    records.add(0, 0, {4, 2});
    records.add_scale();
    const RecordTable table(records.all, {{"h", true}}, {hook("h", 0, {})}, {}, nullptr);
    EXPECT_EQ(table.lines(0),
              R"({"hook_id":"h","shape":[4,2],"dtype":"int8","is_input":true,"source_dtype":"float32"})");
    EXPECT_EQ(table.weight_map(), "{}");
    EXPECT_EQ(table.checksums(), "{}");
    EXPECT_EQ(table.shards(), Names{});
    EXPECT_EQ(table.total_bytes(), 8U);
}

TEST(RecordTable, BothSidesOfAHookComeInTheOrderOfCapture) {
    Records records;
    for (const std::uint32_t step : {0U, 1U}) {
        records.add(0, step, {1});
        records.add(1, step, {2});
    }
    std::swap(records.all[0], records.all[3]);  // as lanes may have it
    const RecordTable table(records.all, {{"h", true}, {"h"}}, {hook("h", 0, 1), hook("other", {}, 1)}, {},
                            nullptr);
    EXPECT_EQ(table.count(0), 4U);
    EXPECT_EQ(table.count(1), 2U);
    const std::string lines = table.lines(0);
    std::size_t at = 0;
    for (const char* next : {"[1]", "[2]", "[1],\"dtype\":\"float32\",\"is_input\":true,\"step\":1",
                             "[2],\"dtype\":\"float32\",\"is_input\":false,\"step\":1"}) {
        at = lines.find(next, at);
        ASSERT_NE(at, std::string::npos) << next;
    }
}

TEST(RecordTable, KindsAreCounted) {
    Records records;
    records.add(0, 0, {7, 2});
    for (std::uint32_t step = 1; step < 4; ++step) records.add(0, step, {1, 2});
    const RecordTable table(records.all, {{"h"}}, {hook("h", {}, 0)}, {}, nullptr);
    const std::vector<RecordTable::Kind> kinds = table.kinds(0);
    // Equal shapes of different records are one shape of the engine's; here each has its own.
    ASSERT_EQ(kinds.size(), 4U);
    EXPECT_EQ(*kinds[0].shape, (Shape{7, 2}));
    EXPECT_EQ(kinds[0].count, 1U);
    records.all[2].shape = records.all[3].shape = records.all[1].shape;
    const RecordTable interned(records.all, {{"h"}}, {hook("h", {}, 0)}, {}, nullptr);
    ASSERT_EQ(interned.kinds(0).size(), 2U);
    EXPECT_EQ(interned.kinds(0)[1].count, 3U);
}

TEST(RecordTable, WhatBelongsToARecordIsNamedBesideIt) {
    Records records;
    records.add(1, 5, {2}).dtype = DType::i32;
    records.add(0, 5, {2});
    records.add_scale().shard = 3;
    const RecordTable table(records.all, {{"w"}, {"w", false, true}}, {hook("w", {}, 0)}, {{0, 1}},
                            all_published);
    EXPECT_EQ(
        table.lines(0),
        R"({"hook_id":"w","shape":[2],"dtype":"int8","is_input":false,"step":5,"source_dtype":"float32",)"
        R"("scale":{"file":"activations-float32-00003.safetensors","key":"w/000005/scale"},)"
        R"("indices":{"file":"activations-int32-00000.safetensors","key":"w/000005/indices"},)"
        R"("data":{"file":"activations-int8-00000.safetensors","key":"w/000005"}})");
    EXPECT_EQ(table.weight_map(), R"({"w/000005/indices":"activations-int32-00000.safetensors",)"
                                  R"("w/000005":"activations-int8-00000.safetensors",)"
                                  R"("w/000005/scale":"activations-float32-00003.safetensors"})");
}

TEST(RecordTable, ARecordWithoutWhatBelongsToItIsLeftOut) {
    Records records;
    records.add(0, 0, {2});
    records.add_scale().shard = 1;  // which is not published
    records.add(0, 1, {2});
    records.add_scale();
    records.add(1, 0, {2});                    // without indices
    records.add(0, 2, {2}).dtype = DType::i8;  // the engine failed before its scales
    const RecordTable table(
        records.all, {{"q"}, {"w"}, {"w", false, true}}, {hook("q", {}, 0), hook("w", {}, 1)}, {{1, 2}},
        [](const std::string& name) { return name != "activations-float32-00001.safetensors"; });
    EXPECT_EQ(table.count(0), 1U);
    EXPECT_NE(table.lines(0).find("q/000001/scale"), std::string::npos);
    EXPECT_EQ(table.count(1), 0U);
    EXPECT_EQ(table.lines(1), "");
    EXPECT_EQ(table.shards(),
              (Names{"activations-int8-00000.safetensors", "activations-float32-00000.safetensors"}));
}

TEST(RecordTable, ChecksumsStandByShard) {
    Records records;
    records.add(0, 0, {1}).crc = 0xDEADBEEF;
    Record& other = records.add(0, 1, {1});
    other.crc = 7;
    other.dtype = DType::bf16;
    records.add(0, 2, {1}).crc = 0;
    const RecordTable table(records.all, {{"h"}}, {hook("h", {}, 0)}, {}, all_published);
    EXPECT_EQ(table.checksums(),
              R"({"activations-float32-00000.safetensors":{"h/000000":"deadbeef","h/000002":"00000000"},)"
              R"("activations-bfloat16-00000.safetensors":{"h/000001":"00000007"}})");
    EXPECT_EQ(table.total_bytes(), 12U);
}

TEST(RecordTable, RecordsAreFoundByWhereTheyComeFrom) {
    Records records;
    for (const std::uint32_t step : {1U, 0U, 2U}) {  // threads that took turns in another order
        records.add(0, step, {step});
        records.add_scale();
    }
    const RecordTable table(records.all, {{"h"}}, {hook("h", {}, 0)}, {}, nullptr);
    for (const std::uint32_t step : {0U, 1U, 2U}) {
        const Record* found = table.find({0, 0, step, 0}, false);
        ASSERT_NE(found, nullptr);
        EXPECT_EQ(*found->shape, Shape{step});
        ASSERT_NE(table.find({0, 0, step, 0}, true), nullptr);
        EXPECT_TRUE(table.find({0, 0, step, 0}, true)->is_scale);
    }
    EXPECT_EQ(table.find({0, 0, 3, 0}, false), nullptr);
    EXPECT_EQ(table.find({0, 1, 0, 0}, false), nullptr);
    EXPECT_EQ(table.find({9, 0, 0, 0}, false), nullptr);
}

}  // namespace
}  // namespace nsf
