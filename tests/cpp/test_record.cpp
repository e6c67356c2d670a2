#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>

#include "core/error.hpp"
#include "core/record.hpp"

namespace nsf {
namespace {

std::string key(std::uint32_t prompt, std::uint32_t call, std::uint32_t step, bool is_input = false,
                bool is_scale = false) {
    Record record;
    record.prompt = prompt;
    record.call = call;
    record.step = step;
    record.is_scale = is_scale;
    return format_key({"hook", is_input}, record);
}

TEST(Record, KeysHaveAllTheirParts) {
    EXPECT_EQ(key(0, 0, 0), "hook/000000");
    EXPECT_EQ(key(0, 0, 12), "hook/000012");
    EXPECT_EQ(key(3, 0, 12), "hook/p3/000012");
    EXPECT_EQ(key(0, 2, 12), "hook/c2/000012");
    EXPECT_EQ(key(3, 2, 12), "hook/p3/c2/000012");
    EXPECT_EQ(key(0, 0, 1, true), "hook/000001/input");
    EXPECT_EQ(key(0, 0, 1, false, true), "hook/000001/scale");
    EXPECT_EQ(key(1, 1, 1, true, true), "hook/p1/c1/000001/input/scale");
    Record indices;
    indices.step = 2;
    EXPECT_EQ(format_key({"hook", false, true}, indices), "hook/000002/indices");
}

TEST(Record, KeysOfTheLargestNumbers) {
    constexpr std::uint32_t most = std::numeric_limits<std::uint32_t>::max();
    EXPECT_EQ(key(most, most, most), "hook/p4294967295/c4294967295/4294967295");
    EXPECT_EQ(key(0, 0, 999'999), "hook/999999");
    EXPECT_EQ(key(0, 0, 1'000'000), "hook/1000000");
}

TEST(Record, KeysBeginWithTheIdAsItIs) {
    EXPECT_EQ(format_key({"", false}, Record{}), "/000000");
    EXPECT_EQ(format_key({"model.layers.10.self_attn_attention", false}, Record{}),
              "model.layers.10.self_attn_attention/000000");
    EXPECT_EQ(format_key({"s\"\\\xC3\xBC/", false}, Record{}), "s\"\\\xC3\xBC//000000");
}

TEST(Record, ShardNames) {
    EXPECT_EQ(shard_name(DType::bf16, 0), "activations-bfloat16-00000.safetensors");
    EXPECT_EQ(shard_name(DType::f8_e4m3fn, 7), "activations-float8_e4m3fn-00007.safetensors");
    EXPECT_EQ(shard_name(DType::boolean, 99'999), "activations-bool-99999.safetensors");
    EXPECT_EQ(shard_name(DType::c64, 123'456), "activations-complex64-123456.safetensors");
    EXPECT_EQ(shard_name(DType::i8, std::numeric_limits<std::uint32_t>::max()),
              "activations-int8-4294967295.safetensors");
}

TEST(Record, NumbersAndShapes) {
    std::string text;
    append_number(text, 0);
    append_number(text, 42, 2);
    append_number(text, 7, 3);
    append_number(text, std::numeric_limits<std::uint64_t>::max(), 5);
    EXPECT_EQ(text, "04200718446744073709551615");
    text.clear();
    append_shape(text, {});
    append_shape(text, {1, 0, 4096});
    EXPECT_EQ(text, "[][1,0,4096]");
}

TEST(Record, JsonEscapes) {
    EXPECT_EQ(json_escape(""), "");
    EXPECT_EQ(json_escape("model.layers.0"), "model.layers.0");
    EXPECT_EQ(json_escape("a\"b\\c"), "a\\\"b\\\\c");
    EXPECT_EQ(json_escape("\n\t\x01\x1F"), "\\u000a\\u0009\\u0001\\u001f");
    EXPECT_EQ(json_escape(std::string("\0", 1)), "\\u0000");
    EXPECT_EQ(json_escape("/\x7F \xE2\x86\x92 \xF0\x9F\x90\x9F"), "/\x7F \xE2\x86\x92 \xF0\x9F\x90\x9F");
}

TEST(EngineError, NamesActionPathAndErrno) {
    const EngineError error = system_error("write", "/runs/a", ENOSPC);
    EXPECT_EQ(error.error_number(), ENOSPC);
    EXPECT_STREQ(error.what(), "cannot write /runs/a: No space left on device (errno 28)");
    EXPECT_EQ(EngineError("closed").error_number(), 0);
}

}  // namespace
}  // namespace nsf
