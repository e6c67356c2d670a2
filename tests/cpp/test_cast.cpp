#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
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

/// Casts everything at every level and under all rules that matter, and compares with the reference and
/// between the levels.
void expect_right(DType from, const std::vector<Bits>& codes) {
    const std::vector<std::byte> source = reference::pack(from, codes);
    for (const DType to : reference::targets) {
        for (const CastRules rules : reference::all_rules) {
            if (from == to || (to != DType::f8_e4m3fn && !rules.e4m3_saturates) ||
                (to != DType::f8_e5m2 && rules.e5m2_saturates)) {
                continue;
            }
            const reference::Cast expected(from, to, rules);
            std::vector<std::byte> scalar;
            for (const CpuLevel level : reference::levels()) {
                SCOPED_TRACE(reference::describe(from, to, rules) + " " + std::string(name(level)));
                std::vector<std::byte> target(codes.size() * item_size(to));
                find_cast(from, to, rules, level)(source.data(), target.data(), codes.size());
                if (level != CpuLevel::scalar) {
                    EXPECT_EQ(target, scalar) << "differs from the scalar kernel";
                    continue;
                }
                scalar = target;
                std::size_t wrong = 0;
                for (std::size_t i = 0; i < codes.size(); ++i) {
                    const Bits got = reference::get(target.data(), to, i);
                    if (!reference::same(to, got, expected(codes[i])) && ++wrong <= 5) {
                        ADD_FAILURE()
                            << std::hex << codes[i] << " gave " << got << ", not " << expected(codes[i]);
                    }
                }
                EXPECT_EQ(wrong, 0U);
            }
        }
    }
}

std::vector<Bits> every_pattern(DType dtype) {
    std::vector<Bits> codes(std::size_t{1} << (8 * item_size(dtype)));
    for (std::size_t i = 0; i < codes.size(); ++i) {
        codes[i] = i;
    }
    return codes;
}

/// Both signs of all exponents with all upper 11 bits of the mantissa and what is next to them: every number
/// and every tie of all narrower types is among them, subnormals, infinities and NaNs too.
std::vector<Bits> float32_patterns() {
    std::vector<Bits> codes;
    for (std::uint32_t upper = 0; upper < 1U << 20; ++upper) {
        const std::uint32_t middle = upper << 12;
        codes.insert(codes.end(), {middle, middle + 1, (middle - 1) & 0xffff'ffff});
    }
    return codes;
}

/// Where float32 or the types behind it round, and any number whatever.
std::vector<Bits> float64_patterns() {
    std::mt19937_64 random(20);
    std::vector<Bits> codes = {0, 1, 0x7ff0'0000'0000'0000, 0x7ff0'0000'0000'0001, 0x7fff'ffff'ffff'ffff};
    for (const float x : {0.0F, 0x1p-149F, 0x1p-148F, 0x1p-127F, 0x1.8p-127F, 0x1.fffffcp-127F, 0x1p-126F,
                          1.0F, 0x1.ffep0F, 0x1.004p0F, 0x1.002p0F, 0x1.00ap0F, 0x1p-24F, 0x1p-25F, 0x1p-10F,
                          464.0F, 65504.0F, 65520.0F, 0x1.fffffep127F}) {
        const Bits exact = std::bit_cast<Bits>(static_cast<double>(x));
        for (const Bits step : {Bits{0}, Bits{1}, Bits{1} << 28, (Bits{1} << 28) + 1, (Bits{1} << 28) - 1,
                                Bits{1} << 29, Bits{3} << 28, (Bits{3} << 28) + 1}) {
            codes.insert(codes.end(), {exact + step, exact - step});
        }
    }
    const double smallest = 0x1p-149;
    for (const double x :
         {0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.5, 3.5, 1000.5, 1001.5, 8388606.5, 8388607.5}) {
        const Bits exact = std::bit_cast<Bits>(x * smallest);
        codes.insert(codes.end(), {exact, exact + 1, exact - 1});
    }
    for (int i = 0; i < 100'000; ++i) {
        codes.push_back(random());
        // ... and of float32's range, half of them on ties of float32
        const Bits exponent = 1023 - 152 + random() % 284;
        const Bits mantissa = random() & 0x000f'ffff'ffff'ffff;
        codes.push_back(exponent << 52 | (i % 2 == 0 ? mantissa : (mantissa >> 28 | 1) << 28));
    }
    for (std::size_t i = 0, count = codes.size(); i < count; ++i) {
        codes.push_back(codes[i] ^ reference::sign_bit(DType::f64));
    }
    return codes;
}

TEST(Cast, EveryPatternOfFloat16) { expect_right(DType::f16, every_pattern(DType::f16)); }
TEST(Cast, EveryPatternOfBFloat16) { expect_right(DType::bf16, every_pattern(DType::bf16)); }
TEST(Cast, EveryPatternOfE4M3) { expect_right(DType::f8_e4m3fn, every_pattern(DType::f8_e4m3fn)); }
TEST(Cast, EveryPatternOfE5M2) { expect_right(DType::f8_e5m2, every_pattern(DType::f8_e5m2)); }
TEST(Cast, EveryTieOfFloat32) { expect_right(DType::f32, float32_patterns()); }
TEST(Cast, Float64RoundsTwice) { expect_right(DType::f64, float64_patterns()); }

template <class From, class To>
To cast_one(DType from, DType to, CastRules rules, From x) {
    To result{};
    find_cast(from, to, rules, cpu_level())(reinterpret_cast<const std::byte*>(&x),
                                            reinterpret_cast<std::byte*>(&result), 1);
    return result;
}

// The codes in these two are what torch gave: 2.13 with the defaults, older versions for e4m3fn without
// saturation.
TEST(Cast, Float8BeyondItsRange) {
    const float infinity = std::numeric_limits<float>::infinity();
    const auto e4m3 = [](float x, bool saturates) {
        return static_cast<int>(
            cast_one<float, std::uint8_t>(DType::f32, DType::f8_e4m3fn, {saturates, false}, x));
    };
    for (const bool saturates : {true, false}) {
        EXPECT_EQ(e4m3(448.0F, saturates), 0x7e);
        EXPECT_EQ(e4m3(464.0F, saturates), 0x7e);  // half-way to 480, whose code is odd
        EXPECT_EQ(e4m3(-464.0F, saturates), 0xfe);
        EXPECT_EQ(e4m3(464.1F, saturates), saturates ? 0x7e : 0x7f);
        EXPECT_EQ(e4m3(480.0F, saturates), saturates ? 0x7e : 0x7f);
        EXPECT_EQ(e4m3(1e30F, saturates), saturates ? 0x7e : 0x7f);
        EXPECT_EQ(e4m3(-infinity, saturates), saturates ? 0xfe : 0xff);
    }
    const auto e5m2 = [](float x, bool saturates) {
        return static_cast<int>(
            cast_one<float, std::uint8_t>(DType::f32, DType::f8_e5m2, {true, saturates}, x));
    };
    for (const bool saturates : {true, false}) {
        EXPECT_EQ(e5m2(57344.0F, saturates), 0x7b);
        EXPECT_EQ(e5m2(61439.0F, saturates), 0x7b);
        EXPECT_EQ(e5m2(61440.0F, saturates), saturates ? 0x7b : 0x7c);
        EXPECT_EQ(e5m2(-infinity, saturates), saturates ? 0xfb : 0xfc);
    }
}

TEST(Cast, Float64GoesByWayOfFloat32) {
    // A little more than half-way between 1 and the next float16 or bfloat16; float32 drops the little.
    EXPECT_EQ((cast_one<double, std::uint16_t>(DType::f64, DType::f16, {}, 1 + 0x1p-11 + 0x1p-40)), 0x3c00);
    EXPECT_EQ((cast_one<double, std::uint16_t>(DType::f64, DType::bf16, {}, 1 + 0x1p-8 + 0x1p-40)), 0x3f80);
}

std::vector<std::byte> random_bytes(std::size_t count) {
    std::mt19937 random(7);
    std::vector<std::byte> bytes(count);
    for (std::byte& byte : bytes) {
        byte = static_cast<std::byte>(random());
    }
    return bytes;
}

constexpr std::size_t most = 1000;
constexpr std::byte guard{0xa5};

/// Calls check(from, to) for every pair that can be cast, and for every type with itself.
template <class Check>
void for_each_pair(const Check& check) {
    for (std::size_t i = 0; i < dtype_count; ++i) {
        check(static_cast<DType>(i), static_cast<DType>(i));
    }
    for (const DType from : reference::floating) {
        for (const DType to : reference::targets) {
            if (from != to) {
                check(from, to);
            }
        }
    }
}

TEST(Cast, AnyCountAnyAlignmentAndNothingBeyondTheEnd) {
    const std::vector<std::byte> source = random_bytes((most + 1) * 8 + 1);
    for_each_pair([&](DType from, DType to) {
        for (const CpuLevel level : reference::levels()) {
            SCOPED_TRACE(reference::describe(from, to, {}) + " " + std::string(name(level)));
            const CastFunction cast = find_cast(from, to, {}, level);
            // 0 and one element off the vectors' alignment; an odd byte off the elements' own
            for (const std::size_t shift : {std::size_t{0}, item_size(from), std::size_t{1}}) {
                std::vector<std::byte> one_by_one(most * item_size(to));
                for (std::size_t i = 0; i < most; ++i) {
                    find_cast(from, to, {}, CpuLevel::scalar)(source.data() + shift + i * item_size(from),
                                                              one_by_one.data() + i * item_size(to), 1);
                }
                for (const std::size_t count :
                     {0U, 1U, 7U, 8U, 15U, 16U, 17U, 31U, 32U, 33U, 63U, 64U, 65U, 255U, 257U, 1000U}) {
                    const std::size_t before = shift == 1 ? 1 : item_size(to);
                    const std::size_t size = count * item_size(to);
                    std::vector<std::byte> expected(before + size + 80, guard);
                    std::copy_n(one_by_one.begin(), size,
                                expected.begin() + static_cast<std::ptrdiff_t>(before));
                    std::vector<std::byte> target(expected.size(), guard);
                    // exactly as many bytes as may be read, so that a sanitizer sees a read beyond them
                    const auto first = source.begin() + static_cast<std::ptrdiff_t>(shift);
                    const std::vector<std::byte> part(
                        first, first + static_cast<std::ptrdiff_t>(count * item_size(from)));
                    cast(part.data(), target.data() + before, count);
                    ASSERT_EQ(target, expected) << count << " elements";
                    cast(source.data() + shift, target.data() + before, count);
                    ASSERT_EQ(target, expected) << count << " elements, off by " << shift;
                }
            }
        }
    });
}

TEST(Cast, AnyStride) {
    const std::vector<std::byte> source = random_bytes(most * 3 * 8);
    for_each_pair([&](DType from, DType to) {
        SCOPED_TRACE(reference::describe(from, to, {}));
        for (const std::ptrdiff_t stride : {1, 2, 3, 0, -1, -3}) {
            for (const std::size_t count : {0U, 1U, 2U, 255U, 256U, 257U, 1000U}) {
                const std::ptrdiff_t first = stride < 0 ? 2999 : 0;
                const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(item_size(from));
                std::vector<std::byte> gathered(count * item_size(from));
                for (std::size_t i = 0; i < count; ++i) {
                    const std::ptrdiff_t index = first + static_cast<std::ptrdiff_t>(i) * stride;
                    std::copy_n(source.begin() + index * size, size,
                                gathered.begin() + static_cast<std::ptrdiff_t>(i) * size);
                }
                std::vector<std::byte> expected(count * item_size(to) + 16, guard);
                std::vector<std::byte> target = expected;
                find_cast(from, to, {}, CpuLevel::scalar)(gathered.data(), expected.data(), count);
                find_strided_cast(from, to, {})(source.data() + first * size, stride, target.data(), count);
                ASSERT_EQ(target, expected) << count << " elements, " << stride << " apart";
            }
        }
    });
}

TEST(Cast, StridedCastsFollowTheRules) {
    const float values[] = {1e30F, 0.0F, -1e30F};
    for (const CastRules rules : reference::all_rules) {
        for (const DType to : {DType::f8_e4m3fn, DType::f8_e5m2}) {
            std::vector<std::byte> expected(2), target(2);
            const float ends[] = {values[0], values[2]};
            find_cast(DType::f32, to, rules, CpuLevel::scalar)(std::as_bytes(std::span(ends)).data(),
                                                               expected.data(), 2);
            find_strided_cast(DType::f32, to, rules)(std::as_bytes(std::span(values)).data(), 2,
                                                     target.data(), 2);
            EXPECT_EQ(target, expected);
        }
    }
}

TEST(Cast, EmptyTensorsMayHaveNoMemory) {
    for_each_pair([](DType from, DType to) {
        for (const CpuLevel level : reference::levels()) {
            find_cast(from, to, {}, level)(nullptr, nullptr, 0);
        }
        find_strided_cast(from, to, {})(nullptr, 1, nullptr, 0);
        find_strided_cast(from, to, {})(nullptr, -5, nullptr, 0);
    });
}

TEST(Cast, ThereAreNoOtherCasts) {
    for (std::size_t i = 0; i < dtype_count; ++i) {
        for (std::size_t j = 0; j < dtype_count; ++j) {
            const auto from = static_cast<DType>(i);
            const auto to = static_cast<DType>(j);
            const bool is_there = from == to || (is_floating(from) && is_floating(to) && to != DType::f64);
            for (const CpuLevel level : reference::levels()) {
                EXPECT_EQ(find_cast(from, to, {}, level) != nullptr, is_there)
                    << reference::describe(from, to, {});
            }
            EXPECT_EQ(find_strided_cast(from, to, {}) != nullptr, is_there)
                << reference::describe(from, to, {});
        }
    }
}

}  // namespace
}  // namespace nsf
