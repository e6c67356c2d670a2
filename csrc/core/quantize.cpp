// int8 with one float32 scale a row.
#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>

#include "core/cast.hpp"
#include "core/cast_detail.hpp"
#include "core/float_mode.hpp"

namespace nsf {

namespace {

constexpr float largest_code = 127.0F;
constexpr std::size_t block = 256;

std::uint32_t max_magnitude_scalar(const std::byte* row, std::size_t count) noexcept {
    std::uint32_t largest = 0;
    for (std::size_t i = 0; i < count; ++i) {
        std::uint32_t bits;
        std::memcpy(&bits, row + i * sizeof(bits), sizeof(bits));
        largest = std::max(largest, bits & detail::f32_magnitude);
    }
    return largest;
}

[[gnu::noinline]] void quantize_scalar(const std::byte* row, std::int8_t* target, std::size_t count,
                                       float scale) noexcept {
    // Adding 1.5 * 2^23 leaves no bits for a fraction: it rounds, and the low bits are the integer.
    constexpr float round_to_integer = 0x1.8p23F;
    for (std::size_t i = 0; i < count; ++i) {
        float x;
        std::memcpy(&x, row + i * sizeof(x), sizeof(x));
        const float quotient = x / scale;
        const float clamped = std::min(std::max(quotient, -largest_code), largest_code);
        const auto code = std::bit_cast<std::int32_t>(clamped + round_to_integer) -
                          std::bit_cast<std::int32_t>(round_to_integer);
        target[i] = static_cast<std::int8_t>(quotient != quotient ? 0 : code);
    }
}

[[gnu::noinline]] float divide(float a, float b) noexcept { return a / b; }

detail::RowKernels row_kernels(CpuLevel level) noexcept {
    switch (level) {
#if defined(__x86_64__)
        case CpuLevel::avx512:
            return detail::row_kernels_avx512();
        case CpuLevel::avx2:
            return detail::row_kernels_avx2();
#endif
        default:
            return {&max_magnitude_scalar, &quantize_scalar};
    }
}

/// Calls visit(row as contiguous float32, first, count) for one stretch of the row after the other.
template <class Visit>
void for_each_stretch(DType from, const std::byte* row, std::ptrdiff_t stride, std::size_t count,
                      CpuLevel level, const Visit& visit) noexcept {
    if (from == DType::f32 && stride == 1) {
        visit(row, std::size_t{0}, count);
        return;
    }
    const CastFunction contiguous = find_cast(from, DType::f32, {}, level);
    const StridedCastFunction strided = find_strided_cast(from, DType::f32, {});
    alignas(64) std::array<std::byte, block * sizeof(float)> buffer;
    for (std::size_t done = 0; done < count; done += block) {
        const std::size_t part = std::min(block, count - done);
        const std::byte* start =
            row + static_cast<std::ptrdiff_t>(done) * stride * static_cast<std::ptrdiff_t>(item_size(from));
        if (stride == 1) {
            contiguous(start, buffer.data(), part);
        } else {
            strided(start, stride, buffer.data(), part);
        }
        visit(buffer.data(), done, part);
    }
}

}  // namespace

float row_scale(DType from, const std::byte* row, std::ptrdiff_t stride, std::size_t count,
                CpuLevel level) noexcept {
    const detail::MaxMagnitude max_magnitude = row_kernels(level).max_magnitude;
    std::uint32_t largest = 0;
    for_each_stretch(from, row, stride, count, level,
                     [&](const std::byte* stretch, std::size_t, std::size_t part) noexcept {
                         largest = std::max(largest, max_magnitude(stretch, part));
                     });
    if (largest >= detail::f32_infinity) {
        return std::numeric_limits<float>::quiet_NaN();
    }
    const DefaultFloatMode mode;
    return divide(std::bit_cast<float>(largest), largest_code);
}

void quantize_row(DType from, const std::byte* source, std::ptrdiff_t stride, std::int8_t* target,
                  std::size_t count, float scale, CpuLevel level) noexcept {
    const std::uint32_t scale_bits = std::bit_cast<std::uint32_t>(scale) & detail::f32_magnitude;
    if (scale_bits == 0 || scale_bits > detail::f32_infinity) {
        std::fill_n(target, count, std::int8_t{0});
        return;
    }
    const detail::Quantize quantize = row_kernels(level).quantize;
    const DefaultFloatMode mode;
    for_each_stretch(from, source, stride, count, level,
                     [&](const std::byte* stretch, std::size_t first, std::size_t part) noexcept {
                         quantize(stretch, target + first, part, scale);
                     });
}

}  // namespace nsf
