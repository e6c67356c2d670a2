// Internal to head_reduce: its arithmetic, on contiguous float32, for each level of vector instructions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/cast.hpp"
#include "core/dtype.hpp"

namespace nsf::detail {

/// Takes `count` elements of one head, of any alignment, into the accumulators.
using FoldHead = void (*)(float* accumulators, const std::byte* elements, std::size_t count) noexcept;

struct HeadFolds {
    FoldHead sum = nullptr;
    FoldHead max = nullptr;
    FoldHead squares = nullptr;
};

/// The thread's floating-point mode must be the default one for all of them.
struct HeadLoops {
    HeadFolds f32;
    HeadFolds bf16;
    /// Every NaN becomes the one with the bits 7fc00000.
    void (*divide)(float* values, std::size_t count, float divisor) noexcept;
    void (*square_root)(float* values, std::size_t count) noexcept;
    void (*plain)(float* values, std::size_t count) noexcept;
    /// The sum of p ln p. `count` is a multiple of entropy_lanes; p is overwritten.
    float (*entropy_sum)(float* p, std::size_t count) noexcept;
};

inline constexpr std::size_t entropy_lanes = 16;

const HeadLoops& head_loops(CpuLevel level) noexcept;

}  // namespace nsf::detail
