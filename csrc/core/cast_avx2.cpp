// The casts with AVX2 and F16C. On other architectures this file is empty.
//
// Every function that uses these instructions carries NSF_AVX2, so the file needs no compiler flags, and no
// inline function of a header can come out of it compiled for a machine that may not be there.
#if defined(__x86_64__)

#include <immintrin.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/cast_detail.hpp"

#define NSF_AVX2 __attribute__((target("avx2,f16c")))
#define NSF_AVX2_INLINE NSF_AVX2 __attribute__((always_inline)) static inline

namespace nsf::detail {

namespace {

constexpr std::size_t width = 16;
constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// 16 float32 values as bits: as many as fill a register with 16-bit results.
struct Lanes {
    __m256i low;
    __m256i high;
};

NSF_AVX2_INLINE __m256i constant(std::uint32_t value) { return _mm256_set1_epi32(static_cast<int>(value)); }

NSF_AVX2_INLINE __m128i load128(const std::byte* source) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
}

NSF_AVX2_INLINE __m256i load256(const std::byte* source) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
}

NSF_AVX2_INLINE void store128(std::byte* target, __m128i value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target), value);
}

NSF_AVX2_INLINE void store256(std::byte* target, __m256i value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), value);
}

NSF_AVX2_INLINE Lanes from_halves(__m256i halves) {
    return {_mm256_castps_si256(_mm256_cvtph_ps(_mm256_castsi256_si128(halves))),
            _mm256_castps_si256(_mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)))};
}

NSF_AVX2_INLINE __m256i from_scaled_half(__m256i bits) {
    return _mm256_castps_si256(_mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(256.0F)));
}

/// Reads 16 elements as float32 bits.
template <DType from>
NSF_AVX2_INLINE Lanes load(const std::byte* source) {
    if constexpr (from == DType::f32) {
        return {load256(source), load256(source + 32)};
    } else if constexpr (from == DType::bf16) {
        return {_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(source)), 16),
                _mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(source + 16)), 16)};
    } else if constexpr (from == DType::f16) {
        return from_halves(load256(source));
    } else if constexpr (from == DType::f8_e5m2) {
        // The upper half of a float16.
        return from_halves(_mm256_slli_epi16(_mm256_cvtepu8_epi16(load128(source)), 8));
    } else {
        static_assert(from == DType::f8_e4m3fn);
        // With the mantissa in a float16's place the number is 2^-8 of what it should be, as the bias is 7
        // and not 15; float16's subnormals are then those of e4m3fn.
        const __m256i codes = _mm256_cvtepu8_epi16(load128(source));
        const __m256i magnitude = _mm256_and_si256(codes, _mm256_set1_epi16(0x7f));
        const __m256i sign = _mm256_slli_epi16(_mm256_xor_si256(codes, magnitude), 8);
        // NaN: all ones above the sign is a NaN in float16, too, and stays one when multiplied.
        const __m256i is_nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f));
        const __m256i nan = _mm256_and_si256(is_nan, _mm256_set1_epi16(0x7e00));
        const Lanes scaled =
            from_halves(_mm256_or_si256(_mm256_or_si256(_mm256_slli_epi16(magnitude, 7), sign), nan));
        return {from_scaled_half(scaled.low), from_scaled_half(scaled.high)};
    }
}

NSF_AVX2_INLINE __m256i round_to_bf16(__m256i bits) {
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), constant(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, constant(0x7fff)), odd);
    const __m256i magnitude = _mm256_and_si256(bits, constant(f32_magnitude));
    const __m256i is_nan = _mm256_cmpgt_epi32(magnitude, constant(f32_infinity));
    const __m256i nan = _mm256_or_si256(bits, constant(f32_quiet_bit));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, nan, is_nan), 16);
}

/// Rounds float32 bits to float8, one in each 32-bit lane.
template <DType to, bool saturates>
NSF_AVX2_INLINE __m256i round_to_f8(__m256i bits) {
    using N = Narrowing<FormatOf<DType::f32>, FormatOf<to>>;
    const __m256i magnitude = _mm256_and_si256(bits, constant(f32_magnitude));
    const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(bits, 24), constant(0x80));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(magnitude, N::shift), constant(1));
    const __m256i normal = _mm256_srli_epi32(
        _mm256_add_epi32(_mm256_add_epi32(magnitude, constant(N::half_less_one - N::rebias)), odd), N::shift);
    // Below the smallest normal number a code counts units of the smallest subnormal. The scaling is exact,
    // and what a denormals-are-zero mode could take away rounds to 0 anyhow.
    constexpr float steps = 1 << FormatOf<to>::mantissa_bits;
    constexpr float units = steps / std::bit_cast<float>(N::smallest_normal);
    const __m256i small = _mm256_min_epi32(magnitude, constant(N::smallest_normal));
    const __m256 scaled = _mm256_mul_ps(_mm256_castsi256_ps(small), _mm256_set1_ps(units));
    const __m256i subnormal = _mm256_cvttps_epi32(_mm256_round_ps(scaled, nearest));
    const __m256i is_small = _mm256_cmpgt_epi32(constant(N::smallest_normal), magnitude);
    const __m256i is_nan = _mm256_cmpgt_epi32(magnitude, constant(f32_infinity));
    __m256i code = _mm256_min_epu32(normal, constant(overflow_code<to, saturates>));
    code = _mm256_blendv_epi8(code, subnormal, is_small);
    code = _mm256_blendv_epi8(code, constant(0x7f), is_nan);
    return _mm256_or_si256(code, sign);
}

/// The lower 16 bits of each lane, in order; the upper ones must be 0.
NSF_AVX2_INLINE __m256i pack16(__m256i low, __m256i high) {
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0b11'01'10'00);
}

/// The lower 8 bits of each lane, in order; the upper ones must be 0.
NSF_AVX2_INLINE __m128i pack8(__m256i low, __m256i high) {
    const __m256i words = pack16(low, high);
    return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

/// Writes 16 elements, given as float32 bits.
template <DType to, bool saturates>
NSF_AVX2_INLINE void store(std::byte* target, Lanes bits) {
    if constexpr (to == DType::f32) {
        store256(target, bits.low);
        store256(target + 32, bits.high);
    } else if constexpr (to == DType::f16) {
        // The rounding stands in the instruction, and it knows no flush-to-zero.
        store128(target, _mm256_cvtps_ph(_mm256_castsi256_ps(bits.low), nearest));
        store128(target + 16, _mm256_cvtps_ph(_mm256_castsi256_ps(bits.high), nearest));
    } else if constexpr (to == DType::bf16) {
        store256(target, pack16(round_to_bf16(bits.low), round_to_bf16(bits.high)));
    } else {
        store128(target, pack8(round_to_f8<to, saturates>(bits.low), round_to_f8<to, saturates>(bits.high)));
    }
}

struct Kernels {
    using Function = CastFunction;

    template <DType from, DType to, bool saturates>
    NSF_AVX2 static void cast(const std::byte* source, std::byte* target, std::size_t count) noexcept {
        if constexpr (from == DType::f64 && to == DType::f32) {
            cast_f64_to_f32(source, target, count);
        } else if constexpr (from == DType::f64) {
            cast_f64_through_f32(source, target, count, &cast<DType::f32, to, saturates>, item_size(to));
        } else {
            constexpr std::size_t read = item_size(from);
            constexpr std::size_t written = item_size(to);
            std::size_t i = 0;
            for (; i + width <= count; i += width) {
                store<to, saturates>(target + i * written, load<from>(source + i * read));
            }
            if (i == count) {
                return;
            }
            if (count >= width) {  // once more for the last 16, some of them the second time
                i = count - width;
                store<to, saturates>(target + i * written, load<from>(source + i * read));
                return;
            }
            std::array<std::byte, width * read> padded{};
            std::array<std::byte, width * written> results;
            std::memcpy(padded.data(), source, count * read);
            store<to, saturates>(results.data(), load<from>(padded.data()));
            std::memcpy(target, results.data(), count * written);
        }
    }
};

constexpr std::size_t row_step = 8;

/// Up to 8 float32; those beyond `left` are 0.
NSF_AVX2_INLINE __m256i load_some(const std::byte* row, std::size_t left) {
    if (left >= row_step) {
        return load256(row);
    }
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i lanes = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(left)), index);
    return _mm256_maskload_epi32(reinterpret_cast<const int*>(row), lanes);
}

NSF_AVX2 std::uint32_t max_magnitude(const std::byte* row, std::size_t count) noexcept {
    __m256i largest = _mm256_setzero_si256();
    for (std::size_t i = 0; i < count; i += row_step) {
        const __m256i bits = load_some(row + i * sizeof(float), count - i);
        largest = _mm256_max_epu32(largest, _mm256_and_si256(bits, constant(f32_magnitude)));
    }
    __m128i best = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    best = _mm_max_epu32(best, _mm_shuffle_epi32(best, 0b01'00'11'10));
    best = _mm_max_epu32(best, _mm_shuffle_epi32(best, 0b10'11'00'01));
    return static_cast<std::uint32_t>(_mm_cvtsi128_si32(best));
}

[[gnu::noinline]] NSF_AVX2 void quantize(const std::byte* row, std::int8_t* target, std::size_t count,
                                         float scale) noexcept {
    const __m256 divisor = _mm256_set1_ps(scale);
    const __m256 limit = _mm256_set1_ps(127.0F);
    for (std::size_t i = 0; i < count; i += row_step) {
        const std::size_t left = count - i;
        const __m256 x = _mm256_castsi256_ps(load_some(row + i * sizeof(float), left));
        const __m256 quotient = _mm256_div_ps(x, divisor);
        const __m256 clamped = _mm256_max_ps(_mm256_min_ps(quotient, limit), _mm256_set1_ps(-127.0F));
        const __m256 is_number = _mm256_cmp_ps(quotient, quotient, _CMP_ORD_Q);
        const __m256i rounded = _mm256_cvtps_epi32(_mm256_and_ps(clamped, is_number));
        const __m128i words =
            _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
        const __m128i codes = _mm_packs_epi16(words, words);
        alignas(16) std::array<std::int8_t, 16> results;
        _mm_store_si128(reinterpret_cast<__m128i*>(results.data()), codes);
        std::memcpy(target + i, results.data(), left < row_step ? left : row_step);
    }
}

}  // namespace

CastFunction find_cast_avx2(DType from, DType to, CastRules rules) noexcept {
    return Choice<Kernels>::find(from, to, rules);
}

RowKernels row_kernels_avx2() noexcept { return {&max_magnitude, &quantize}; }

}  // namespace nsf::detail

#endif
