// Slow and simple casts to hold the fast ones against: a search in the table of all values of a type. Shares
// nothing with csrc/core/cast*.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/cast.hpp"

namespace nsf::reference {

/// An element as an integer.
using Bits = std::uint64_t;

inline const std::vector<DType> floating = {DType::f64,  DType::f32,       DType::f16,
                                            DType::bf16, DType::f8_e4m3fn, DType::f8_e5m2};
inline const std::vector<DType> targets = {DType::f32, DType::f16, DType::bf16, DType::f8_e4m3fn,
                                           DType::f8_e5m2};
inline const std::vector<CastRules> all_rules = {{true, false}, {false, false}, {true, true}, {false, true}};

inline std::vector<CpuLevel> levels() {
    std::vector<CpuLevel> found;
    for (const CpuLevel level : {CpuLevel::scalar, CpuLevel::avx2, CpuLevel::avx512}) {
        if (level <= cpu_level()) {
            found.push_back(level);
        }
    }
    return found;
}

inline std::string describe(DType from, DType to, CastRules rules) {
    return std::string(name(from)) + " to " + std::string(name(to)) + (rules.e4m3_saturates ? ", e4m3" : "") +
           (rules.e5m2_saturates ? ", e5m2" : "");
}

inline Bits get(const std::byte* data, DType dtype, std::size_t index) {
    Bits bits = 0;  // the machines this runs on are little-endian, and so are the files
    std::memcpy(&bits, data + index * item_size(dtype), item_size(dtype));
    return bits;
}

inline void put(std::byte* data, DType dtype, std::size_t index, Bits bits) {
    std::memcpy(data + index * item_size(dtype), &bits, item_size(dtype));
}

inline std::vector<std::byte> pack(DType dtype, const std::vector<Bits>& codes) {
    std::vector<std::byte> data(codes.size() * item_size(dtype));
    for (std::size_t i = 0; i < codes.size(); ++i) {
        put(data.data(), dtype, i, codes[i]);
    }
    return data;
}

inline Bits sign_bit(DType dtype) { return Bits{1} << (8 * item_size(dtype) - 1); }

/// The number that `code` stands for.
inline double value(DType dtype, Bits code) {
    if (dtype == DType::f64) {
        return std::bit_cast<double>(code);
    }
    if (dtype == DType::f32) {
        return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(code)));
    }
    const bool negative = (code & sign_bit(dtype)) != 0;
    const int magnitude = static_cast<int>(code & (sign_bit(dtype) - 1));
    const int mantissa_bits = dtype == DType::f16       ? 10
                              : dtype == DType::bf16    ? 7
                              : dtype == DType::f8_e5m2 ? 2
                                                        : 3;
    const int bias = dtype == DType::bf16 ? 127 : dtype == DType::f8_e4m3fn ? 7 : 15;
    const int mantissa = magnitude & ((1 << mantissa_bits) - 1);
    const int exponent = magnitude >> mantissa_bits;
    double result;
    if (dtype == DType::f8_e4m3fn && magnitude == 0x7f) {
        result = std::numeric_limits<double>::quiet_NaN();
    } else if (dtype != DType::f8_e4m3fn && exponent == 2 * bias + 1) {
        result = mantissa == 0 ? std::numeric_limits<double>::infinity()
                               : std::numeric_limits<double>::quiet_NaN();
    } else if (exponent == 0) {
        result = std::ldexp(mantissa, 1 - bias - mantissa_bits);
    } else {
        result = std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
    }
    return std::copysign(result, negative ? -1.0 : 1.0);
}

inline bool is_nan(DType dtype, Bits code) {
    if (dtype == DType::f64) {
        return (code & ~sign_bit(dtype)) > 0x7ff0'0000'0000'0000;
    }
    if (dtype == DType::f32) {
        return (code & ~sign_bit(dtype)) > 0x7f80'0000;
    }
    return std::isnan(value(dtype, code));
}

/// Equal, or both NaN with the same sign.
inline bool same(DType dtype, Bits a, Bits b) {
    if (is_nan(dtype, a) && is_nan(dtype, b)) {
        return ((a ^ b) & sign_bit(dtype)) == 0;
    }
    return a == b;
}

class Cast {
  public:
    Cast(DType from, DType to, CastRules rules) : from_(from), to_(to), rules_(rules) {
        if (to == DType::f32) {
            return;  // the compiler's own conversion from double is reference enough
        }
        for (Bits code = 0; code < sign_bit(to) && std::isfinite(value(to, code)); ++code) {
            finite_.push_back(value(to, code));
        }
        // Numbers are rounded as if the exponents went on; whatever comes out beyond the last one is
        // overflow.
        const std::size_t count = finite_.size();
        finite_.push_back(2 * finite_[count - 1] - finite_[count - 2]);
    }

    Bits operator()(Bits code) const {
        if (is_nan(from_, code)) {
            const Bits sign = (code & sign_bit(from_)) != 0 ? sign_bit(to_) : 0;
            return sign | (sign_bit(to_) - 1);
        }
        // Twice for float64: that is what torch does.
        const float x = static_cast<float>(value(from_, code));
        if (to_ == DType::f32) {
            return std::bit_cast<std::uint32_t>(x);
        }
        return magnitude(std::fabs(static_cast<double>(x))) | (std::signbit(x) ? sign_bit(to_) : 0);
    }

  private:
    Bits magnitude(double x) const {
        const auto above = std::lower_bound(finite_.begin(), finite_.end(), x);  // the first value >= x
        if (above == finite_.end()) {
            return overflow();
        }
        auto nearest = static_cast<Bits>(above - finite_.begin());
        if (*above != x) {
            const double down = x - *(above - 1);  // exact: neighbours of one type, and x between them
            const double up = *above - x;
            if (down < up || (down == up && nearest % 2 == 1)) {
                --nearest;
            }
        }
        return nearest == finite_.size() - 1 ? overflow() : nearest;
    }

    Bits overflow() const {
        const Bits largest = finite_.size() - 2;
        const bool saturates = to_ == DType::f8_e4m3fn ? rules_.e4m3_saturates
                               : to_ == DType::f8_e5m2 ? rules_.e5m2_saturates
                                                       : false;
        return saturates ? largest : largest + 1;  // infinity, in e4m3fn NaN, follows the largest number
    }

    DType from_;
    DType to_;
    CastRules rules_;
    std::vector<double> finite_;
};

}  // namespace nsf::reference
