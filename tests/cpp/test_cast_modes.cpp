// Whatever floating-point mode the calling thread is in, and whichever level is chosen, results stay the
// same.
#include <gtest/gtest.h>

#include <cfenv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "cast_reference.hpp"
#include "core/cast.hpp"
#include "core/cast_detail.hpp"

namespace nsf {
namespace {

/// Numbers of every magnitude, above all those around the smallest of each type, all finite.
std::vector<float> delicate_numbers() {
    std::mt19937 random(11);
    std::vector<float> numbers;
    for (int exponent = -149; exponent < 127; ++exponent) {
        for (int i = 0; i < 20; ++i) {
            const double mantissa = 1.0 + static_cast<double>(random() % 4096) / 4096.0;
            const auto x = static_cast<float>(std::ldexp(mantissa, exponent));
            numbers.push_back(i % 2 == 0 ? x : -x);
        }
    }
    return numbers;
}

std::vector<std::byte> as_type(DType dtype, const std::vector<float>& numbers) {
    std::vector<std::byte> data(numbers.size() * item_size(dtype));
    if (dtype == DType::f64) {
        for (std::size_t i = 0; i < numbers.size(); ++i) {
            const double x = static_cast<double>(numbers[i]) * (1 + 0x1p-25);
            std::memcpy(data.data() + i * sizeof(x), &x, sizeof(x));
        }
    } else {
        find_cast(DType::f32, dtype, {}, CpuLevel::scalar)(std::as_bytes(std::span(numbers)).data(),
                                                           data.data(), numbers.size());
    }
    return data;
}

/// The bytes of every cast, scale and quantised row of the numbers.
std::vector<std::byte> all_results(const std::vector<std::vector<std::byte>>& sources, std::size_t count,
                                   CpuLevel level) {
    std::vector<std::byte> results;
    for (std::size_t i = 0; i < sources.size(); ++i) {
        const DType from = reference::floating[i];
        for (const DType to : reference::targets) {
            std::vector<std::byte> target(count * item_size(to));
            find_cast(from, to, {}, level)(sources[i].data(), target.data(), count);
            results.insert(results.end(), target.begin(), target.end());
            find_strided_cast(from, to, {})(sources[i].data(), 2, target.data(), count / 2);
            results.insert(results.end(), target.begin(), target.end());
        }
        constexpr std::size_t row = 20;  // numbers of one exponent, so that not all of a row becomes 0
        std::vector<std::int8_t> codes(row);
        for (std::size_t start = 0; start + row <= count; start += row) {
            const std::byte* data = sources[i].data() + start * item_size(from);
            const float scale = row_scale(from, data, 1, row, level);
            quantize_row(from, data, 1, codes.data(), row, scale, level);
            for (const auto& bytes : {std::as_bytes(std::span(&scale, 1)), std::as_bytes(std::span(codes))}) {
                results.insert(results.end(), bytes.begin(), bytes.end());
            }
        }
    }
    return results;
}

class Modes : public testing::Test {
  protected:
    void SetUp() override {
        const std::vector<float> numbers = delicate_numbers();
        count_ = numbers.size();
        for (const DType from : reference::floating) {
            sources_.push_back(as_type(from, numbers));
        }
        expected_ = all_results(sources_, count_, CpuLevel::scalar);
    }

    void expect_the_same(const std::string& mode) {
        for (const CpuLevel level : reference::levels()) {
            const bool same = all_results(sources_, count_, level) == expected_;
            EXPECT_TRUE(same) << mode << ", " << name(level);
        }
    }

    std::vector<std::vector<std::byte>> sources_;
    std::size_t count_ = 0;
    std::vector<std::byte> expected_;
};

TEST_F(Modes, Default) { expect_the_same("to nearest"); }

TEST_F(Modes, Rounding) {
    for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
        ASSERT_EQ(std::fesetround(mode), 0);
        expect_the_same("rounding mode " + std::to_string(mode));
        EXPECT_EQ(std::fegetround(), mode);
        std::fesetround(FE_TONEAREST);
    }
}

#if defined(__x86_64__)
TEST_F(Modes, FlushToZeroAndDenormalsAreZero) {
    const unsigned before = _mm_getcsr();
    for (const unsigned bits : {0x8000U, 0x0040U, 0x8040U}) {
        _mm_setcsr(before | bits);
        expect_the_same("MXCSR with " + std::to_string(bits));
        EXPECT_EQ(_mm_getcsr() & 0xffc0U, (before | bits) & 0xffc0U);
        _mm_setcsr(before);
    }
}
#endif

TEST(CpuLevels, TheEnvironmentLowersAndNeverRaises) {
    using detail::lowered;
    EXPECT_EQ(lowered(CpuLevel::avx512, nullptr), CpuLevel::avx512);
    EXPECT_EQ(lowered(CpuLevel::avx512, "avx2"), CpuLevel::avx2);
    EXPECT_EQ(lowered(CpuLevel::avx512, "scalar"), CpuLevel::scalar);
    EXPECT_EQ(lowered(CpuLevel::avx2, "avx512"), CpuLevel::avx2);
    EXPECT_EQ(lowered(CpuLevel::scalar, "avx512"), CpuLevel::scalar);
    EXPECT_EQ(lowered(CpuLevel::avx2, ""), CpuLevel::avx2);
    EXPECT_EQ(lowered(CpuLevel::avx2, "AVX512"), CpuLevel::avx2);
}

TEST(CpuLevels, HaveNames) {
    EXPECT_EQ(name(CpuLevel::scalar), "scalar");
    EXPECT_EQ(name(CpuLevel::avx2), "avx2");
    EXPECT_EQ(name(CpuLevel::avx512), "avx512");
    EXPECT_EQ(cpu_level(), cpu_level());
}

}  // namespace
}  // namespace nsf
