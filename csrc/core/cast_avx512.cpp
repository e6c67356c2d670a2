// The casts with AVX-512 (F, BW, DQ, VL). On other architectures this file is empty.
//
// Every function that uses these instructions carries NSF_AVX512, so the file needs no compiler flags, and no
// inline function of a header can come out of it compiled for a machine that may not be there.
#if defined(__x86_64__)

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the "undefined" registers inside its own AVX-512 intrinsics for our mistake (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include <bit>
#include <cstddef>
#include <cstdint>

#include "core/cast_detail.hpp"

#define NSF_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c")))
#define NSF_AVX512_INLINE NSF_AVX512 __attribute__((always_inline)) static inline

namespace nsf::detail {

namespace {

constexpr std::size_t width = 16;
constexpr __mmask16 all = 0xffff;
constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

NSF_AVX512_INLINE __m512i constant(std::uint32_t value) { return _mm512_set1_epi32(static_cast<int>(value)); }

/// Reads up to 16 elements as float32 bits; lanes without their bit in `lanes` are not touched in memory.
template <DType from>
NSF_AVX512_INLINE __m512i load(const std::byte* source, __mmask16 lanes) {
    if constexpr (from == DType::f32) {
        return _mm512_maskz_loadu_epi32(lanes, source);
    } else if constexpr (from == DType::bf16) {
        return _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, source)), 16);
    } else if constexpr (from == DType::f16) {
        return _mm512_castps_si512(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, source)));
    } else if constexpr (from == DType::f8_e5m2) {
        // The upper half of a float16.
        const __m256i codes = _mm256_cvtepu8_epi16(_mm_maskz_loadu_epi8(lanes, source));
        return _mm512_castps_si512(_mm512_cvtph_ps(_mm256_slli_epi16(codes, 8)));
    } else {
        static_assert(from == DType::f8_e4m3fn);
        // With the mantissa in a float16's place the number is 2^-8 of what it should be, as the bias is 7
        // and not 15; float16's subnormals are then those of e4m3fn.
        const __m256i codes = _mm256_cvtepu8_epi16(_mm_maskz_loadu_epi8(lanes, source));
        const __m256i magnitude = _mm256_and_si256(codes, _mm256_set1_epi16(0x7f));
        const __m256i sign = _mm256_slli_epi16(_mm256_xor_si256(codes, magnitude), 8);
        const __m256i half = _mm256_or_si256(_mm256_slli_epi16(magnitude, 7), sign);
        const __m512 value = _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0F));
        const __mmask16 nan = _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x7f));
        return _mm512_mask_or_epi32(_mm512_castps_si512(value), nan, _mm512_castps_si512(value),
                                    constant(f32_infinity | f32_quiet_bit));
    }
}

/// Rounds float32 bits to float8, one in each 32-bit lane.
template <DType to, bool saturates>
NSF_AVX512_INLINE __m512i narrow_to_f8(__m512i bits) {
    using N = Narrowing<FormatOf<DType::f32>, FormatOf<to>>;
    const __m512i magnitude = _mm512_and_si512(bits, constant(f32_magnitude));
    const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 24), constant(0x80));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(magnitude, N::shift), constant(1));
    const __m512i normal = _mm512_srli_epi32(
        _mm512_add_epi32(_mm512_add_epi32(magnitude, constant(N::half_less_one - N::rebias)), odd), N::shift);
    // Below the smallest normal number a code counts units of the smallest subnormal. The scaling is exact,
    // and what a denormals-are-zero mode could take away rounds to 0 anyhow.
    constexpr float steps = 1 << FormatOf<to>::mantissa_bits;
    constexpr float units = steps / std::bit_cast<float>(N::smallest_normal);
    const __m512i subnormal = _mm512_cvt_roundps_epi32(
        _mm512_mul_ps(_mm512_castsi512_ps(magnitude), _mm512_set1_ps(units)), nearest);
    const __mmask16 is_small = _mm512_cmplt_epi32_mask(magnitude, constant(N::smallest_normal));
    const __mmask16 is_nan = _mm512_cmpgt_epi32_mask(magnitude, constant(f32_infinity));
    __m512i code = _mm512_min_epu32(normal, constant(overflow_code<to, saturates>));
    code = _mm512_mask_mov_epi32(code, is_small, subnormal);
    code = _mm512_mask_mov_epi32(code, is_nan, constant(0x7f));
    return _mm512_or_si512(code, sign);
}

/// Writes up to 16 elements, given as float32 bits; memory of lanes without their bit in `lanes` stays as it
/// is.
template <DType to, bool saturates>
NSF_AVX512_INLINE void store(std::byte* target, __m512i bits, __mmask16 lanes) {
    if constexpr (to == DType::f32) {
        _mm512_mask_storeu_epi32(target, lanes, bits);
    } else if constexpr (to == DType::f16) {
        // The rounding stands in the instruction, and it knows no flush-to-zero.
        _mm256_mask_storeu_epi16(target, lanes, _mm512_cvtps_ph(_mm512_castsi512_ps(bits), nearest));
    } else if constexpr (to == DType::bf16) {
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), constant(1));
        const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, constant(0x7fff)), odd);
        const __m512i magnitude = _mm512_and_si512(bits, constant(f32_magnitude));
        const __mmask16 is_nan = _mm512_cmpgt_epi32_mask(magnitude, constant(f32_infinity));
        const __m512i result = _mm512_mask_or_epi32(rounded, is_nan, bits, constant(f32_quiet_bit));
        _mm256_mask_storeu_epi16(target, lanes, _mm512_cvtepi32_epi16(_mm512_srli_epi32(result, 16)));
    } else {
        _mm_mask_storeu_epi8(target, lanes, _mm512_cvtepi32_epi8(narrow_to_f8<to, saturates>(bits)));
    }
}

struct Kernels {
    using Function = CastFunction;

    template <DType from, DType to, bool saturates>
    NSF_AVX512 static void cast(const std::byte* source, std::byte* target, std::size_t count) noexcept {
        if constexpr (from == DType::f64 && to == DType::f32) {
            cast_f64_to_f32(source, target, count);
        } else if constexpr (from == DType::f64) {
            cast_f64_through_f32(source, target, count, &cast<DType::f32, to, saturates>, item_size(to));
        } else {
            constexpr std::size_t read = width * item_size(from);
            constexpr std::size_t written = width * item_size(to);
            for (; count >= width; count -= width, source += read, target += written) {
                store<to, saturates>(target, load<from>(source, all), all);
            }
            if (count != 0) {
                const auto lanes = static_cast<__mmask16>((1U << count) - 1);
                store<to, saturates>(target, load<from>(source, lanes), lanes);
            }
        }
    }
};

NSF_AVX512 std::uint32_t max_magnitude(const std::byte* row, std::size_t count) noexcept {
    __m512i largest = _mm512_setzero_si512();
    for (std::size_t i = 0; i < count; i += width) {
        const std::size_t left = count - i;
        const auto lanes = left >= width ? all : static_cast<__mmask16>((1U << left) - 1);
        const __m512i bits = load<DType::f32>(row + i * sizeof(float), lanes);
        largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, constant(f32_magnitude)));
    }
    return _mm512_reduce_max_epu32(largest);
}

[[gnu::noinline]] NSF_AVX512 void quantize(const std::byte* row, std::int8_t* target, std::size_t count,
                                           float scale) noexcept {
    const __m512 divisor = _mm512_set1_ps(scale);
    const __m512 limit = _mm512_set1_ps(127.0F);
    for (std::size_t i = 0; i < count; i += width) {
        const std::size_t left = count - i;
        const auto lanes = left >= width ? all : static_cast<__mmask16>((1U << left) - 1);
        const __m512 x = _mm512_castsi512_ps(load<DType::f32>(row + i * sizeof(float), lanes));
        const __m512 quotient = _mm512_div_ps(x, divisor);
        const __m512 clamped = _mm512_max_ps(_mm512_min_ps(quotient, limit), _mm512_set1_ps(-127.0F));
        const __mmask16 is_number = _mm512_cmp_ps_mask(quotient, quotient, _CMP_ORD_Q);
        const __m512i rounded = _mm512_maskz_cvtps_epi32(is_number, clamped);
        _mm_mask_storeu_epi8(target + i, lanes, _mm512_cvtepi32_epi8(rounded));
    }
}

}  // namespace

CastFunction find_cast_avx512(DType from, DType to, CastRules rules) noexcept {
    return Choice<Kernels>::find(from, to, rules);
}

RowKernels row_kernels_avx512() noexcept { return {&max_magnitude, &quantize}; }

}  // namespace nsf::detail

#endif
