// The element types a tensor can have on its way through the engine, and what each is called outside of it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace nsf {

/// The order is part of the journal's format, which stores these numbers; every other file carries names.
enum class DType : std::uint8_t {
    f64,
    f32,
    f16,
    bf16,
    f8_e4m3fn,
    f8_e5m2,
    i64,
    i32,
    i16,
    i8,
    u64,
    u32,
    u16,
    u8,
    boolean,
    c64
};

inline constexpr std::size_t dtype_count = 16;

namespace detail {

struct DTypeInfo {
    std::string_view name;
    std::string_view safetensors_name;
    std::size_t item_size;
};

// In the order of DType.
inline constexpr std::array<DTypeInfo, dtype_count> dtype_table{{
    {"float64", "F64", 8},
    {"float32", "F32", 4},
    {"float16", "F16", 2},
    {"bfloat16", "BF16", 2},
    {"float8_e4m3fn", "F8_E4M3", 1},
    {"float8_e5m2", "F8_E5M2", 1},
    {"int64", "I64", 8},
    {"int32", "I32", 4},
    {"int16", "I16", 2},
    {"int8", "I8", 1},
    {"uint64", "U64", 8},
    {"uint32", "U32", 4},
    {"uint16", "U16", 2},
    {"uint8", "U8", 1},
    {"bool", "BOOL", 1},
    {"complex64", "C64", 8},
}};

}  // namespace detail

/// Bytes of one element.
constexpr std::size_t item_size(DType dtype) noexcept {
    return detail::dtype_table[static_cast<std::size_t>(dtype)].item_size;
}

/// torch's name without its "torch." ("bfloat16"): what metadata, options and file names use.
constexpr std::string_view name(DType dtype) noexcept {
    return detail::dtype_table[static_cast<std::size_t>(dtype)].name;
}

/// The name in a safetensors header ("BF16"); note that float8_e4m3fn is "F8_E4M3" there.
constexpr std::string_view safetensors_name(DType dtype) noexcept {
    return detail::dtype_table[static_cast<std::size_t>(dtype)].safetensors_name;
}

/// The inverse of name(); nullopt for anything else (aliases such as "half" or "torch.float32" included).
constexpr std::optional<DType> dtype_from_name(std::string_view text) noexcept {
    for (std::size_t i = 0; i < dtype_count; ++i) {
        if (detail::dtype_table[i].name == text) {
            return static_cast<DType>(i);
        }
    }
    return std::nullopt;
}

/// True for the six real floating-point types: those that can be cast. complex64 is not one of them.
constexpr bool is_floating(DType dtype) noexcept {
    return static_cast<std::uint8_t>(dtype) <= static_cast<std::uint8_t>(DType::f8_e5m2);
}

}  // namespace nsf
