// One body for all levels: plain loops that the compiler turns into vector instructions, in functions that name
// the instructions it may use. CMakeLists.txt compiles this file with
//   -ffp-contract=off      as GCC fuses multiply and add by default, in C++ also under -std=c++20, and AVX-512
//                          and ARM have the instruction: the levels and the GPU would no longer agree;
//   -fno-math-errno, -fno-trapping-math   without which square roots and choices are not vectorised.
#include "core/head_reduce_loops.hpp"

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#define NSF_BODY __attribute__((always_inline)) static inline

namespace nsf::detail {

namespace {

struct LoadF32 {
    NSF_BODY float at(const std::byte* source, std::size_t index) noexcept {
        float value;
        std::memcpy(&value, source + index * sizeof(value), sizeof(value));
        return value;
    }
};

struct LoadBf16 {
    NSF_BODY float at(const std::byte* source, std::size_t index) noexcept {
        std::uint16_t bits;
        std::memcpy(&bits, source + index * sizeof(bits), sizeof(bits));
        return std::bit_cast<float>(std::uint32_t{bits} << 16);
    }
};

struct Sum {
    NSF_BODY float fold(float accumulator, float x) noexcept { return accumulator + x; }
};

struct Squares {
    NSF_BODY float fold(float accumulator, float x) noexcept { return accumulator + x * x; }
};

struct Max {
    NSF_BODY float fold(float accumulator, float x) noexcept {
        const float larger = x > accumulator ? x : accumulator;  // keeps an accumulator that is NaN
        return x != x ? x : larger;
    }
};

struct Divide {
    float divisor;
    __attribute__((always_inline)) inline float finish(float x) const noexcept { return x / divisor; }
};

struct SquareRoot {
    __attribute__((always_inline)) inline float finish(float x) const noexcept { return std::sqrt(x); }
};

struct Plain {
    __attribute__((always_inline)) inline float finish(float x) const noexcept { return x; }
};

template <class Load, class Operation>
NSF_BODY void fold_body(float* accumulators, const std::byte* elements, std::size_t count) noexcept {
    for (std::size_t i = 0; i < count; ++i) {
        accumulators[i] = Operation::fold(accumulators[i], Load::at(elements, i));
    }
}

template <class Operation>
NSF_BODY void finish_body(float* values, std::size_t count, Operation operation) noexcept {
    for (std::size_t i = 0; i < count; ++i) {
        const float result = operation.finish(values[i]);
        values[i] = result != result ? std::numeric_limits<float>::quiet_NaN() : result;
    }
}

/// p ln p: 0 for p = 0, NaN for a negative or NaN p. The logarithm is that of the Cephes library (logf.c, S. L.
/// Moshier, http://www.netlib.org/cephes/), good to about one unit in the last place, also next to 1, where
/// what the instructions of GPUs give is not. The Triton kernel has the same one.
NSF_BODY float p_log_p(float p) noexcept {
    constexpr std::int32_t smallest_normal = 0x0080'0000;
    constexpr std::int32_t root_of_half = 0x3f35'04f3;
    const auto own_bits = std::bit_cast<std::int32_t>(p);
    const bool is_small = own_bits < smallest_normal;
    const auto raised_bits = std::bit_cast<std::int32_t>(p * 0x1p23F);  // a softmax has subnormal p
    // Unsigned, as the bits of a negative p wrap around; its logarithm is not used.
    const auto shifted = static_cast<std::int32_t>(
        static_cast<std::uint32_t>(is_small ? raised_bits : own_bits) - std::uint32_t{root_of_half});
    const float exponent = static_cast<float>((shifted >> 23) - (is_small ? 23 : 0));
    const float f = std::bit_cast<float>((shifted & 0x007f'ffff) + root_of_half) - 1.0F;
    const float square = f * f;
    float y = 7.0376836292e-2F;
    y = y * f - 1.1514610310e-1F;
    y = y * f + 1.1676998740e-1F;
    y = y * f - 1.2420140846e-1F;
    y = y * f + 1.4249322787e-1F;
    y = y * f - 1.6668057665e-1F;
    y = y * f + 2.0000714765e-1F;
    y = y * f - 2.4999993993e-1F;
    y = y * f + 3.3333331174e-1F;
    y = y * f * square;
    y = y + exponent * -2.12194440e-4F;
    y = y - square * 0.5F;
    const float logarithm = (f + y) + exponent * 0.693359375F;
    const float term = p < 0.0F ? std::numeric_limits<float>::quiet_NaN() : p * logarithm;
    return p == 0.0F ? 0.0F : term;
}

NSF_BODY float entropy_sum_body(float* p, std::size_t count) noexcept {
    for (std::size_t i = 0; i < count; ++i) p[i] = p_log_p(p[i]);
    std::array<float, entropy_lanes> lanes{};
    for (std::size_t i = 0; i < count; i += entropy_lanes) {
        for (std::size_t lane = 0; lane < entropy_lanes; ++lane) lanes[lane] += p[i + lane];
    }
    for (std::size_t half = entropy_lanes / 2; half > 0; half /= 2) {
        for (std::size_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    }
    return lanes[0];
}

// Functions that may use `target`, each with a copy of the body, and the table of them.
#define NSF_HEAD_LOOPS(level, target)                                                                      \
    template <class Load, class Operation>                                                                 \
    target void fold_##level(float* accumulators, const std::byte* elements, std::size_t count) noexcept { \
        fold_body<Load, Operation>(accumulators, elements, count);                                         \
    }                                                                                                      \
    target void divide_##level(float* values, std::size_t count, float divisor) noexcept {                 \
        finish_body(values, count, Divide{divisor});                                                       \
    }                                                                                                      \
    target void square_root_##level(float* values, std::size_t count) noexcept {                           \
        finish_body(values, count, SquareRoot{});                                                          \
    }                                                                                                      \
    target void plain_##level(float* values, std::size_t count) noexcept {                                 \
        finish_body(values, count, Plain{});                                                               \
    }                                                                                                      \
    target float entropy_sum_##level(float* p, std::size_t count) noexcept {                               \
        return entropy_sum_body(p, count);                                                                 \
    }                                                                                                      \
    constexpr HeadLoops loops_##level = {                                                                  \
        {&fold_##level<LoadF32, Sum>, &fold_##level<LoadF32, Max>, &fold_##level<LoadF32, Squares>},       \
        {&fold_##level<LoadBf16, Sum>, &fold_##level<LoadBf16, Max>, &fold_##level<LoadBf16, Squares>},    \
        &divide_##level,                                                                                   \
        &square_root_##level,                                                                              \
        &plain_##level,                                                                                    \
        &entropy_sum_##level};

NSF_HEAD_LOOPS(scalar, )
#if defined(__x86_64__)
NSF_HEAD_LOOPS(avx2, __attribute__((target("avx2"))))
NSF_HEAD_LOOPS(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))))
#endif

}  // namespace

const HeadLoops& head_loops(CpuLevel level) noexcept {
    switch (level) {
#if defined(__x86_64__)
        case CpuLevel::avx512:
            return loops_avx512;
        case CpuLevel::avx2:
            return loops_avx2;
#endif
        default:
            return loops_scalar;
    }
}

}  // namespace nsf::detail
