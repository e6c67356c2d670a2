// Internal to the casts: what the three sets of kernels (scalar, AVX2, AVX-512) share.
//
// The binary formats, conversions of single elements in integer arithmetic, so that no floating-point mode of
// the calling thread can change a result, and the choice of a kernel by type.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "core/cast.hpp"
#include "core/dtype.hpp"

namespace nsf::detail {

/// A binary floating-point format: a sign, then the exponent, then the mantissa.
template <class WordType, int exponent_width, int mantissa_width>
struct Format {
    using Word = WordType;
    static constexpr int mantissa_bits = mantissa_width;
    static constexpr int bias = (1 << (exponent_width - 1)) - 1;
    static constexpr int sign_shift = exponent_width + mantissa_width;
    static constexpr Word magnitude = static_cast<Word>((Word{1} << sign_shift) - 1);
    /// Exponent all ones, mantissa zero: infinity, except in e4m3fn, where it is the number 256.
    static constexpr Word top_exponent =
        static_cast<Word>(((Word{1} << exponent_width) - 1) << mantissa_width);
};

template <DType dtype>
struct FormatOf;
template <>
struct FormatOf<DType::f64> : Format<std::uint64_t, 11, 52> {};
template <>
struct FormatOf<DType::f32> : Format<std::uint32_t, 8, 23> {};
template <>
struct FormatOf<DType::f16> : Format<std::uint16_t, 5, 10> {};
template <>
struct FormatOf<DType::bf16> : Format<std::uint16_t, 8, 7> {};
template <>
struct FormatOf<DType::f8_e4m3fn> : Format<std::uint8_t, 4, 3> {};
template <>
struct FormatOf<DType::f8_e5m2> : Format<std::uint8_t, 5, 2> {};

/// What a magnitude beyond the largest finite one becomes.
template <DType to, bool saturates>
inline constexpr std::uint32_t overflow_code = FormatOf<to>::top_exponent;
template <bool saturates>
inline constexpr std::uint32_t overflow_code<DType::f8_e4m3fn, saturates> = saturates ? 0x7e : 0x7f;
template <bool saturates>
inline constexpr std::uint32_t overflow_code<DType::f8_e5m2, saturates> = saturates ? 0x7b : 0x7c;

inline constexpr std::uint32_t f32_magnitude = FormatOf<DType::f32>::magnitude;
inline constexpr std::uint32_t f32_infinity = FormatOf<DType::f32>::top_exponent;
inline constexpr std::uint32_t f32_quiet_bit = 0x0040'0000;

/// The constants of rounding `From` to the narrower `To`, for the vector kernels too.
template <class From, class To>
struct Narrowing {
    using Word = typename From::Word;
    static constexpr int shift = From::mantissa_bits - To::mantissa_bits;
    static constexpr Word half_less_one = (Word{1} << (shift - 1)) - 1;
    /// What to subtract from From's exponent field to get To's.
    static constexpr Word rebias = static_cast<Word>(From::bias - To::bias) << From::mantissa_bits;
    /// To's smallest normal number, as a From.
    static constexpr Word smallest_normal = rebias + (Word{1} << From::mantissa_bits);
};

/// Rounds a magnitude (the bits less the sign; not a NaN) to the narrower format `To`, half to even. Beyond
/// To's range the result goes on growing with the value: the caller cuts it off at the overflow code.
template <class From, class To>
constexpr typename From::Word round_magnitude(typename From::Word bits) noexcept {
    using Word = typename From::Word;
    using N = Narrowing<From, To>;
    const Word normal = (bits + N::half_less_one + ((bits >> N::shift) & 1) - N::rebias) >> N::shift;
    if constexpr (From::bias == To::bias) {
        return normal;  // one exponent range: subnormals are cut like all others
    } else {
        // Below To's smallest normal number the mantissa, led by its one, moves right by a further bit for
        // each missing exponent. A subnormal From, which has no leading one, is too small for that to matter.
        constexpr Word leading_one = Word{1} << From::mantissa_bits;
        constexpr Word first_exponent = N::smallest_normal >> From::mantissa_bits;
        constexpr Word largest_move = std::numeric_limits<Word>::digits - 1;
        const Word mantissa = (bits & (leading_one - 1)) | leading_one;
        const Word missing = first_exponent - std::min<Word>(bits >> From::mantissa_bits, first_exponent);
        const Word move = std::min<Word>(N::shift + missing, largest_move);
        const Word subnormal = (mantissa + ((Word{1} << (move - 1)) - 1) + ((mantissa >> move) & 1)) >> move;
        return bits < N::smallest_normal ? subnormal : normal;
    }
}

/// Casts one float64 or float32, given as bits, to a narrower type.
template <DType from, DType to, bool saturates>
constexpr typename FormatOf<to>::Word narrow(typename FormatOf<from>::Word bits) noexcept {
    using From = FormatOf<from>;
    using To = FormatOf<to>;
    using Word = typename From::Word;
    const Word magnitude = bits & From::magnitude;
    const Word finite = std::min<Word>(round_magnitude<From, To>(magnitude), overflow_code<to, saturates>);
    Word nan = To::magnitude;
    if constexpr (To::mantissa_bits > 3) {
        // Like the hardware's own conversions: quiet, the upper part of the payload kept.
        nan = (magnitude >> (From::mantissa_bits - To::mantissa_bits) & To::magnitude) | To::top_exponent |
              (Word{1} << (To::mantissa_bits - 1));
    }
    const Word sign = (bits >> From::sign_shift) << To::sign_shift;
    return static_cast<typename To::Word>(sign | (magnitude > From::top_exponent ? nan : finite));
}

/// Casts one 8- or 16-bit float to float32; both as bits. Exact; a signalling bfloat16 NaN stays one.
template <DType from>
constexpr std::uint32_t widen(std::uint32_t code) noexcept {
    using To = FormatOf<DType::f32>;
    using From = FormatOf<from>;
    constexpr int shift = To::mantissa_bits - From::mantissa_bits;
    if constexpr (From::bias == To::bias) {
        return code << shift;
    } else {
        constexpr auto exponent = [](int e) { return static_cast<std::uint32_t>(To::bias + e) << 23; };
        const std::uint32_t magnitude = code & From::magnitude;
        const std::uint32_t sign = (code & ~magnitude) << (To::sign_shift - From::sign_shift);
        const std::uint32_t normal = (magnitude << shift) + exponent(-From::bias);
        // Integer times a power of two, and never subnormal in float32: exact in every floating-point mode.
        const float unit = std::bit_cast<float>(exponent(1 - From::bias - From::mantissa_bits));
        const std::uint32_t subnormal =
            std::bit_cast<std::uint32_t>(static_cast<float>(static_cast<int>(magnitude)) * unit);
        std::uint32_t bits = magnitude >> From::mantissa_bits == 0 ? subnormal : normal;
        if constexpr (from == DType::f8_e4m3fn) {
            bits = magnitude == From::magnitude ? f32_infinity | normal : bits;
        } else {
            bits = magnitude >= From::top_exponent ? f32_infinity | (magnitude << shift) : bits;
            bits = magnitude > From::top_exponent ? bits | f32_quiet_bit : bits;
        }
        return sign | bits;
    }
}

// ------------------------------------------------------------------------------------- choice of a kernel

/// Kernels::cast<from, to, saturates>, a Kernels::Function, for types known only at run time; nullptr where
/// from == to or there is no such cast.
template <class Kernels>
struct Choice {
    using Function = typename Kernels::Function;

    template <DType from, DType to>
    static Function with_rules(CastRules rules) noexcept {
        if constexpr (from == to) {
            return nullptr;
        } else if constexpr (to == DType::f8_e4m3fn) {
            return rules.e4m3_saturates ? &Kernels::template cast<from, to, true>
                                        : &Kernels::template cast<from, to, false>;
        } else if constexpr (to == DType::f8_e5m2) {
            return rules.e5m2_saturates ? &Kernels::template cast<from, to, true>
                                        : &Kernels::template cast<from, to, false>;
        } else {
            return &Kernels::template cast<from, to, false>;
        }
    }

    template <DType from>
    static Function to_type(DType to, CastRules rules) noexcept {
        switch (to) {
            case DType::f32:
                return with_rules<from, DType::f32>(rules);
            case DType::f16:
                return with_rules<from, DType::f16>(rules);
            case DType::bf16:
                return with_rules<from, DType::bf16>(rules);
            case DType::f8_e4m3fn:
                return with_rules<from, DType::f8_e4m3fn>(rules);
            case DType::f8_e5m2:
                return with_rules<from, DType::f8_e5m2>(rules);
            default:
                return nullptr;
        }
    }

    static Function find(DType from, DType to, CastRules rules) noexcept {
        switch (from) {
            case DType::f64:
                return to_type<DType::f64>(to, rules);
            case DType::f32:
                return to_type<DType::f32>(to, rules);
            case DType::f16:
                return to_type<DType::f16>(to, rules);
            case DType::bf16:
                return to_type<DType::bf16>(to, rules);
            case DType::f8_e4m3fn:
                return to_type<DType::f8_e4m3fn>(to, rules);
            case DType::f8_e5m2:
                return to_type<DType::f8_e5m2>(to, rules);
            default:
                return nullptr;
        }
    }
};

/// The magnitude of the float32 with the largest one, as bits: beyond f32_infinity if there is a NaN.
using MaxMagnitude = std::uint32_t (*)(const std::byte* row, std::size_t count) noexcept;
/// quantize_row for contiguous float32. The thread's floating-point mode must be the default one.
using Quantize = void (*)(const std::byte* row, std::int8_t* target, std::size_t count, float scale) noexcept;

struct RowKernels {
    MaxMagnitude max_magnitude;
    Quantize quantize;
};

/// float64 to float32, contiguous.
void cast_f64_to_f32(const std::byte* source, std::byte* target, std::size_t count) noexcept;
/// float64 by way of float32 to a type of `target_size` bytes.
void cast_f64_through_f32(const std::byte* source, std::byte* target, std::size_t count,
                          CastFunction from_f32, std::size_t target_size) noexcept;

#if defined(__x86_64__)
CastFunction find_cast_avx2(DType from, DType to, CastRules rules) noexcept;
CastFunction find_cast_avx512(DType from, DType to, CastRules rules) noexcept;
RowKernels row_kernels_avx2() noexcept;
RowKernels row_kernels_avx512() noexcept;
#endif

/// The level to use on a machine that has `detected`, where `wish` (may be null) is the environment's.
CpuLevel lowered(CpuLevel detected, const char* wish) noexcept;

}  // namespace nsf::detail
