#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "cast_reference.hpp"
#include "core/cast.hpp"

namespace nsf {
namespace {

using reference::Bits;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

float scale_of(const std::vector<float>& row, CpuLevel level) {
    return row_scale(DType::f32, std::as_bytes(std::span(row)).data(), 1, row.size(), level);
}

std::vector<int> codes_of(const std::vector<float>& row, float scale, CpuLevel level) {
    std::vector<std::int8_t> codes(row.size());
    quantize_row(DType::f32, std::as_bytes(std::span(row)).data(), 1, codes.data(), row.size(), scale, level);
    return {codes.begin(), codes.end()};
}

TEST(Quantize, ScaleIsTheLargestMagnitudeBy127) {
    for (const CpuLevel level : reference::levels()) {
        SCOPED_TRACE(name(level));
        EXPECT_EQ(scale_of({}, level), 0.0F);
        EXPECT_EQ(scale_of({0.0F, -0.0F}, level), 0.0F);
        EXPECT_EQ(scale_of({1.0F, -254.0F, 3.0F}, level), 2.0F);
        EXPECT_EQ(scale_of({0x1p-149F}, level), 0.0F);  // the quotient is below the smallest subnormal
        EXPECT_EQ(scale_of({0x1p-149F * 127}, level), 0x1p-149F);
        EXPECT_EQ(scale_of({std::numeric_limits<float>::max()}, level),
                  std::numeric_limits<float>::max() / 127.0F);
    }
}

TEST(Quantize, ScaleIsNaNIfAnyElementIsNotFinite) {
    for (const CpuLevel level : reference::levels()) {
        for (const float bad : {nan, -nan, infinity, -infinity}) {
            for (const std::size_t count : {1U, 8U, 15U, 16U, 17U, 33U, 300U, 600U}) {
                for (const std::size_t place : {std::size_t{0}, count / 2, count - 1}) {
                    std::vector<float> row(count, 1.0F);
                    row[place] = bad;
                    EXPECT_TRUE(std::isnan(scale_of(row, level)))
                        << name(level) << " " << place << " of " << count;
                }
            }
        }
    }
    const double beyond_float32 = 1e300;
    EXPECT_TRUE(std::isnan(
        row_scale(DType::f64, reinterpret_cast<const std::byte*>(&beyond_float32), 1, 1, CpuLevel::scalar)));
}

TEST(Quantize, RoundsHalfToEvenAndClamps) {
    const std::vector<float> row = {0.0F,   -0.0F, 0.5F,        1.5F,     2.5F,      -0.5F,
                                    -1.5F,  -2.5F, 0.49999997F, 126.5F,   125.5F,    127.0F,
                                    127.4F, 128.F, 1e30F,       infinity, -infinity, -128.0F};
    const std::vector<int> expected = {0,   0,   0,   2,   2,   0,   -2,  -2,   0,
                                       126, 126, 127, 127, 127, 127, 127, -127, -127};
    for (const CpuLevel level : reference::levels()) {
        SCOPED_TRACE(name(level));
        EXPECT_EQ(codes_of(row, 1.0F, level), expected);
        EXPECT_EQ(codes_of({nan, -nan, 1.0F}, 1.0F, level), (std::vector<int>{0, 0, 1}));
    }
}

TEST(Quantize, ScalesThatAreNoScales) {
    const std::vector<float> row(20, 5.0F);
    for (const CpuLevel level : reference::levels()) {
        for (const float scale : {0.0F, -0.0F, nan, infinity}) {
            EXPECT_EQ(codes_of(row, scale, level), std::vector<int>(20, 0)) << name(level) << " " << scale;
        }
    }
}

int expected_code(float x, float scale) {
    const float quotient = x / scale;
    return static_cast<int>(std::clamp(std::nearbyint(quotient), -127.0F, 127.0F));
}

TEST(Quantize, RowsOfAnyTypeLengthAndStride) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    constexpr std::size_t most = 1000;
    for (const DType from : reference::floating) {
        // Values of the type itself, so that the reference needs no cast.
        std::vector<float> values(3 * most);
        std::vector<Bits> codes(3 * most);
        for (std::size_t i = 0; i < values.size(); ++i) {
            const float x = normal(random);
            codes[i] = from == DType::f64   ? std::bit_cast<Bits>(static_cast<double>(x))
                       : from == DType::f32 ? std::bit_cast<std::uint32_t>(x)
                                            : reference::Bits{random() % 100} +
                                                  (random() % 2 == 0 ? reference::sign_bit(from) : 0);
            values[i] = static_cast<float>(reference::value(from, codes[i]));
        }
        const std::vector<std::byte> data = reference::pack(from, codes);
        for (const CpuLevel level : reference::levels()) {
            for (const std::ptrdiff_t stride : {1, 3, 0, -2}) {
                for (const std::size_t count :
                     {1U, 7U, 8U, 15U, 16U, 17U, 31U, 63U, 64U, 65U, 255U, 256U, 257U, 1000U}) {
                    SCOPED_TRACE(std::string(name(from)) + " " + std::string(name(level)) + ", " +
                                 std::to_string(count) + " elements " + std::to_string(stride) + " apart");
                    const std::size_t first = stride < 0 ? 3 * most - 1 : 1;
                    const std::byte* start = data.data() + first * item_size(from);
                    std::vector<float> row(count);
                    for (std::size_t i = 0; i < count; ++i) {
                        row[i] =
                            values[first + static_cast<std::size_t>(static_cast<std::ptrdiff_t>(i) * stride)];
                    }
                    float largest = 0;
                    for (const float x : row) {
                        largest = std::max(largest, std::fabs(x));
                    }
                    const float scale = row_scale(from, start, stride, count, level);
                    ASSERT_EQ(scale, largest / 127.0F);
                    std::vector<std::int8_t> target(count + 33, 99);
                    quantize_row(from, start, stride, target.data() + 1, count, scale, level);
                    for (std::size_t i = 0; i < count; ++i) {
                        ASSERT_EQ(target[i + 1], largest == 0 ? 0 : expected_code(row[i], scale)) << row[i];
                    }
                    EXPECT_EQ(target[0], 99);
                    EXPECT_EQ(
                        std::count(target.begin() + 1 + static_cast<std::ptrdiff_t>(count), target.end(), 99),
                        32);
                }
            }
        }
    }
}

TEST(Quantize, EmptyRowsMayHaveNoMemory) {
    for (const DType from : reference::floating) {
        for (const CpuLevel level : reference::levels()) {
            EXPECT_EQ(row_scale(from, nullptr, 1, 0, level), 0.0F);
            quantize_row(from, nullptr, 1, nullptr, 0, 0.0F, level);
            quantize_row(from, nullptr, 2, nullptr, 0, 1.0F, level);
        }
    }
}

}  // namespace
}  // namespace nsf
