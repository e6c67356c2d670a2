// Casts between floating-point element types, and the row-wise int8 quantisation: what happens to a tensor's
// bytes on their way into a block of the ring.
//
// Every cast gives the bits that torch's own tensor.to(dtype) gives (a NaN stays a NaN of the same sign, its
// payload may differ):
//   - rounding is to nearest, ties to even;
//   - float64 goes to the 8- and 16-bit types by way of float32, rounding twice, because torch does;
//   - overflow gives infinity in float16 and bfloat16, and what CastRules says in float8;
//   - subnormal results and operands are kept.
// Neither the rounding mode nor flush-to-zero of the calling thread (torch.set_flush_denormal) changes a
// result: kernels work on integers, name their rounding in the instruction, or set the mode while they run.
//
// Sources need no alignment and are never written; source and target must not overlap. All functions are
// thread-safe and allocate nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/dtype.hpp"

namespace nsf {

/// Which vector instructions a kernel may use. Each level contains those before it.
///   avx2: AVX2 and F16C. avx512: AVX-512 F, BW, DQ and VL (not BF16, whose conversion flushes subnormals).
enum class CpuLevel : std::uint8_t { scalar, avx2, avx512 };

/// The best level of this machine, detected once. The environment variable NEUROSCOPE_FAST_CPU
/// (scalar | avx2 | avx512), read at the first call, lowers it and never raises it; other values are ignored.
CpuLevel cpu_level() noexcept;

/// "scalar", "avx2" or "avx512".
std::string_view name(CpuLevel level) noexcept;

/// What the torch that runs beside us does with values beyond the largest finite float8, infinities included:
/// give the largest finite value (true), or NaN in e4m3fn and infinity in e5m2 (false). The defaults are
/// torch 2.13's; older versions do not saturate e4m3fn.
struct CastRules {
    bool e4m3_saturates = true;
    bool e5m2_saturates = false;
};

/// Casts `count` contiguous elements.
using CastFunction = void (*)(const std::byte* source, std::byte* target, std::size_t count) noexcept;

/// Casts `count` elements that stand `stride` elements apart (negative and 0 included) to a contiguous
/// target. `source` is the first element to be read, wherever in memory the others are.
using StridedCastFunction = void (*)(const std::byte* source, std::ptrdiff_t stride, std::byte* target,
                                     std::size_t count) noexcept;

/// The cast from any floating type to float32, bfloat16, float16, float8_e4m3fn or float8_e5m2; for from ==
/// to, whatever the type, a plain copy. nullptr where there is no such cast (integers, bool and complex are
/// never cast). `level` must not be above what the machine has, that is, above cpu_level().
CastFunction find_cast(DType from, DType to, CastRules rules, CpuLevel level) noexcept;

/// The same casts for strided sources, at cpu_level().
StridedCastFunction find_strided_cast(DType from, DType to, CastRules rules) noexcept;

/// The scale with which a row of `count` elements, `stride` elements apart, is quantised to int8: max|x| /
/// 127 in float32. NaN if an element is not finite as float32; 0 for an empty or all-zero row, and where
/// max|x| / 127 is below float32's smallest subnormal. `from` must be a floating type.
float row_scale(DType from, const std::byte* row, std::ptrdiff_t stride, std::size_t count,
                CpuLevel level) noexcept;

/// Writes rint(float32(x) / scale), half to even, clamped to -127 .. 127; the division is float32's. 0 for
/// every x if the scale is 0 or NaN, and for an x that is NaN. `target` gets `count` contiguous codes.
void quantize_row(DType from, const std::byte* source, std::ptrdiff_t stride, std::int8_t* target,
                  std::size_t count, float scale, CpuLevel level) noexcept;

}  // namespace nsf
