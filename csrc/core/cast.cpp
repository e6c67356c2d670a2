#include "core/cast.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "core/cast_detail.hpp"
#include "core/float_mode.hpp"

namespace nsf {

namespace {

using detail::FormatOf;

// Elements that a cast in two stages takes at a time: the buffer between them stays in the first-level cache.
constexpr std::size_t block = 256;

CpuLevel detect() noexcept {
#if defined(__x86_64__)
    // By hand, as __builtin_cpu_supports does not know F16C in every compiler we build with.
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0) {
        return CpuLevel::scalar;
    }
    constexpr unsigned f16c_avx_osxsave = 1U << 29 | 1U << 28 | 1U << 27;
    if ((c & f16c_avx_osxsave) != f16c_avx_osxsave) {
        return CpuLevel::scalar;
    }
    // The instructions only work if the operating system saves their registers, too.
    unsigned saved = 0, saved_high = 0;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(saved_high) : "c"(0));
    constexpr unsigned ymm_state = 0x06;
    constexpr unsigned zmm_state = 0xe6;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) {
        return CpuLevel::scalar;
    }
    constexpr unsigned avx2 = 1U << 5;
    constexpr unsigned avx512_f_dq_bw_vl = 1U << 16 | 1U << 17 | 1U << 30 | 1U << 31;
    if ((b & avx2) == 0 || (saved & ymm_state) != ymm_state) {
        return CpuLevel::scalar;
    }
    if ((b & avx512_f_dq_bw_vl) != avx512_f_dq_bw_vl || (saved & zmm_state) != zmm_state) {
        return CpuLevel::avx2;
    }
    return CpuLevel::avx512;
#else
    return CpuLevel::scalar;
#endif
}

template <DType dtype>
auto load(const std::byte* source, std::size_t index) noexcept {
    typename FormatOf<dtype>::Word word;
    std::memcpy(&word, source + index * sizeof(word), sizeof(word));
    return word;
}

struct ScalarKernels {
    using Function = CastFunction;

    template <DType from, DType to, bool saturates>
    static void cast(const std::byte* source, std::byte* target, std::size_t count) noexcept {
        if constexpr (from == DType::f64 && to != DType::f32) {
            detail::cast_f64_through_f32(source, target, count, &cast<DType::f32, to, saturates>,
                                         item_size(to));
        } else {
            for (std::size_t i = 0; i < count; ++i) {
                const auto result = cast_one<from, to, saturates>(load<from>(source, i));
                std::memcpy(target + i * sizeof(result), &result, sizeof(result));
            }
        }
    }

    template <DType from, DType to, bool saturates>
    static auto cast_one(typename FormatOf<from>::Word word) noexcept {
        if constexpr (FormatOf<from>::mantissa_bits < 23) {
            const std::uint32_t wide = detail::widen<from>(word);
            if constexpr (to == DType::f32) {
                return wide;
            } else {
                return detail::narrow<DType::f32, to, saturates>(wide);
            }
        } else {
            return detail::narrow<from, to, saturates>(word);
        }
    }
};

template <std::size_t size>
void copy(const std::byte* source, std::byte* target, std::size_t count) noexcept {
    if (count != 0) {  // an empty tensor may come with null pointers
        std::memcpy(target, source, count * size);
    }
}

template <std::size_t size>
void copy_strided(const std::byte* source, std::ptrdiff_t stride, std::byte* target,
                  std::size_t count) noexcept {
    if (stride == 1) {
        copy<size>(source, target, count);
        return;
    }
    // Addresses come from the index, so that none beyond the last element is ever formed.
    const std::ptrdiff_t step = stride * static_cast<std::ptrdiff_t>(size);
    for (std::size_t i = 0; i < count; ++i) {
        std::memcpy(target + i * size, source + static_cast<std::ptrdiff_t>(i) * step, size);
    }
}

CastFunction find_copy(std::size_t size) noexcept {
    switch (size) {
        case 1:
            return &copy<1>;
        case 2:
            return &copy<2>;
        case 4:
            return &copy<4>;
        default:
            return &copy<8>;
    }
}

StridedCastFunction find_strided_copy(std::size_t size) noexcept {
    switch (size) {
        case 1:
            return &copy_strided<1>;
        case 2:
            return &copy_strided<2>;
        case 4:
            return &copy_strided<4>;
        default:
            return &copy_strided<8>;
    }
}

struct StridedKernels {
    using Function = StridedCastFunction;

    /// Gathers into a buffer in the first-level cache and casts from there: the same kernels, the same bits.
    template <DType from, DType to, bool saturates>
    static void cast(const std::byte* source, std::ptrdiff_t stride, std::byte* target,
                     std::size_t count) noexcept {
        const CastFunction contiguous = find_cast(from, to, {saturates, saturates}, cpu_level());
        if (stride == 1) {
            contiguous(source, target, count);
            return;
        }
        constexpr std::size_t size = item_size(from);
        alignas(64) std::array<std::byte, block * size> buffer;
        for (std::size_t done = 0; done < count; done += block) {
            const std::size_t part = std::min(block, count - done);
            const std::ptrdiff_t offset =
                static_cast<std::ptrdiff_t>(done) * stride * static_cast<std::ptrdiff_t>(size);
            copy_strided<size>(source + offset, stride, buffer.data(), part);
            contiguous(buffer.data(), target + done * item_size(to), part);
        }
    }
};

}  // namespace

#if defined(__x86_64__)
namespace {

// By the processor's own conversion, which is vectorised where work on bits is not. Not inlined: see DefaultFloatMode.
[[gnu::noinline]] void convert_f64(const std::byte* __restrict source, std::byte* __restrict target,
                                   std::size_t count) noexcept {
    for (std::size_t i = 0; i < count; ++i) {
        double wide = 0;
        std::memcpy(&wide, source + i * sizeof(double), sizeof(double));
        const auto value = static_cast<float>(wide);
        std::memcpy(target + i * sizeof(float), &value, sizeof(float));
    }
}

}  // namespace
#endif

void detail::cast_f64_to_f32(const std::byte* source, std::byte* target, std::size_t count) noexcept {
#if defined(__x86_64__)
    const DefaultFloatMode mode;
    convert_f64(source, target, count);
#else
    ScalarKernels::cast<DType::f64, DType::f32, false>(source, target, count);
#endif
}

void detail::cast_f64_through_f32(const std::byte* source, std::byte* target, std::size_t count,
                                  CastFunction from_f32, std::size_t target_size) noexcept {
    alignas(64) std::array<std::byte, block * sizeof(float)> buffer;
    for (std::size_t done = 0; done < count; done += block) {
        const std::size_t part = std::min(block, count - done);
        cast_f64_to_f32(source + done * sizeof(double), buffer.data(), part);
        from_f32(buffer.data(), target + done * target_size, part);
    }
}

CpuLevel detail::lowered(CpuLevel detected, const char* wish) noexcept {
    if (wish == nullptr) {
        return detected;
    }
    for (const CpuLevel level : {CpuLevel::scalar, CpuLevel::avx2, CpuLevel::avx512}) {
        if (name(level) == wish) {
            return std::min(level, detected);
        }
    }
    return detected;
}

CpuLevel cpu_level() noexcept {
    static const CpuLevel level = detail::lowered(detect(), std::getenv("NEUROSCOPE_FAST_CPU"));
    return level;
}

std::string_view name(CpuLevel level) noexcept {
    switch (level) {
        case CpuLevel::avx512:
            return "avx512";
        case CpuLevel::avx2:
            return "avx2";
        default:
            return "scalar";
    }
}

CastFunction find_cast(DType from, DType to, CastRules rules, CpuLevel level) noexcept {
    if (from == to) {
        return find_copy(item_size(from));
    }
    switch (level) {
#if defined(__x86_64__)
        case CpuLevel::avx512:
            return detail::find_cast_avx512(from, to, rules);
        case CpuLevel::avx2:
            return detail::find_cast_avx2(from, to, rules);
#endif
        default:
            return detail::Choice<ScalarKernels>::find(from, to, rules);
    }
}

StridedCastFunction find_strided_cast(DType from, DType to, CastRules rules) noexcept {
    if (from == to) {
        return find_strided_copy(item_size(from));
    }
    return detail::Choice<StridedKernels>::find(from, to, rules);
}

}  // namespace nsf
