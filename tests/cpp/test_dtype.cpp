#include <gtest/gtest.h>

#include <cstddef>
#include <iterator>
#include <optional>
#include <set>
#include <string_view>
#include <vector>

#include "core/dtype.hpp"

namespace nsf {
namespace {

std::vector<DType> all_dtypes() {
    std::vector<DType> all;
    for (std::size_t i = 0; i < dtype_count; ++i) {
        all.push_back(static_cast<DType>(i));
    }
    return all;
}

TEST(DType, SizesNamesAndSafetensorsNames) {
    struct Row {
        DType dtype;
        std::size_t size;
        std::string_view name;
        std::string_view safetensors_name;
        bool floating;
    };
    const Row rows[] = {
        {DType::f64, 8, "float64", "F64", true},
        {DType::f32, 4, "float32", "F32", true},
        {DType::f16, 2, "float16", "F16", true},
        {DType::bf16, 2, "bfloat16", "BF16", true},
        {DType::f8_e4m3fn, 1, "float8_e4m3fn", "F8_E4M3", true},
        {DType::f8_e5m2, 1, "float8_e5m2", "F8_E5M2", true},
        {DType::i64, 8, "int64", "I64", false},
        {DType::i32, 4, "int32", "I32", false},
        {DType::i16, 2, "int16", "I16", false},
        {DType::i8, 1, "int8", "I8", false},
        {DType::u64, 8, "uint64", "U64", false},
        {DType::u32, 4, "uint32", "U32", false},
        {DType::u16, 2, "uint16", "U16", false},
        {DType::u8, 1, "uint8", "U8", false},
        {DType::boolean, 1, "bool", "BOOL", false},
        {DType::c64, 8, "complex64", "C64", false},
    };
    ASSERT_EQ(std::size(rows), dtype_count);
    for (const Row& row : rows) {
        EXPECT_EQ(item_size(row.dtype), row.size) << row.name;
        EXPECT_EQ(name(row.dtype), row.name);
        EXPECT_EQ(safetensors_name(row.dtype), row.safetensors_name);
        EXPECT_EQ(is_floating(row.dtype), row.floating) << row.name;
    }
}

TEST(DType, NamesLeadBack) {
    for (const DType dtype : all_dtypes()) {
        EXPECT_EQ(dtype_from_name(name(dtype)), dtype) << name(dtype);
    }
}

TEST(DType, NamesAreDistinct) {
    std::set<std::string_view> names;
    std::set<std::string_view> safetensors_names;
    for (const DType dtype : all_dtypes()) {
        names.insert(name(dtype));
        safetensors_names.insert(safetensors_name(dtype));
    }
    EXPECT_EQ(names.size(), dtype_count);
    EXPECT_EQ(safetensors_names.size(), dtype_count);
}

TEST(DType, OtherNamesAreNone) {
    for (const std::string_view text : {"", "float", "half", "torch.float32", "Float32", "float32 ", "F32",
                                        "bfloat", "float8_e4m3fnuz", "complex128"}) {
        EXPECT_EQ(dtype_from_name(text), std::nullopt) << text;
    }
}

TEST(DType, IsUsableInConstantExpressions) {
    static_assert(item_size(DType::bf16) == 2);
    static_assert(name(DType::boolean) == "bool");
    static_assert(dtype_from_name("bfloat16") == DType::bf16);
    static_assert(!is_floating(DType::c64));
}

}  // namespace
}  // namespace nsf
