// The reduction of attention tensors over their heads, and the entropy of attention rows: what is left of a
// record [batch, heads, queries, keys] where the heads, or the keys, are of no interest one by one.
//
// The twins in python/neuroscope_fast/kernels (head_reduce.py in Triton, reference.py in torch) follow the same
// definition. Elements are cast to float32 first; then, in float32, one head after the other in the order
// given, with no fused multiply-add:
//   sum      x0 + x1 + …, from -0.0 on: the sum over one head is that head to the bit.
//   mean     the sum / float32(number of heads).
//   max      the first of the largest: -0.0 and 0.0 are equal, and whichever comes first stays.
//   l2_norm  sqrt(x0² + x1² + …), rounded correctly.
//   entropy  of each row (the last axis) of each head: -sum p ln p, in nats. p = 0 adds nothing, so the
//            entropy of a row that is masked whole, or has no elements, is 0. A negative p gives NaN. p need
//            not sum to 1. Sums of 256 elements are float32, sums of those float64; the twins agree to within
//            2e-6 of the value.
//   select   no reduction: the chosen heads in the order given, cast directly.
// A NaN among the elements makes the result NaN; in float32 it is then the one with the bits 7fc00000 (but
// `select` hands on what the cast gives). The five others agree bit for bit, also between CPU levels, and
// neither the rounding mode nor flush-to-zero of the calling thread plays a part.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "core/cast.hpp"
#include "core/tensor_view.hpp"

namespace nsf {

enum class HeadReduction : std::uint8_t { mean, sum, max, l2_norm, entropy, select };

/// "mean", "sum", "max", "l2_norm", "entropy" or "select"; nullopt for anything else.
std::optional<HeadReduction> head_reduction_from_name(std::string_view text) noexcept;

namespace detail {
struct HeadLoops;
}

/// One reduction of one tensor. Thread-safe once row_scales() has been called, where it has to be; allocates
/// in the constructor and in row_scales() only.
class HeadReducer {
  public:
    /// `view` has four axes: heads are axis 1 ([batch, heads, queries, keys], [batch, heads, positions,
    /// head size]) or axis 2 ([batch, positions, heads, head size]). `heads`: indices in any order, none of
    /// them twice; nullopt: all. `target`: float32, bfloat16, float16, float8_e4m3fn, float8_e5m2, or int8,
    /// which quantises the result row by row. Throws std::invalid_argument that says what to change. The
    /// memory behind the view must outlive the reducer, the view itself need not.
    HeadReducer(const TensorView& view, std::size_t head_axis, HeadReduction reduction,
                const std::optional<std::vector<std::int64_t>>& heads, DType target, CastRules rules,
                CpuLevel level = cpu_level());

    /// Of the result: the view's shape without the head axis; for entropy without the last axis; for select
    /// with as many heads as chosen.
    const Shape& shape() const { return shape_; }
    std::uint64_t elements() const { return elements_; }
    bool quantizes() const { return target_ == DType::i8; }

    /// One scale for each row of the result's last axis, as row_scale() gives them for the float32 result.
    /// Reads the whole tensor. Must be called before read() where quantizes() is true.
    const std::vector<float>& row_scales();

    /// Writes the result's elements `begin` to `begin + count` (in C order; they must exist) to `target`,
    /// cast. Any pieces give the same bytes.
    void read(std::uint64_t begin, std::size_t count, std::byte* target) const;

  private:
    struct Axis {
        std::int64_t size = 1;
        std::int64_t stride = 0;  // in elements
        bool is_table = false;    // the chosen heads: offsets are in head_offsets_
    };
    /// One stretch of the tensor that goes into the result.
    struct Run {
        std::int64_t offset = 0;  // in elements
        std::size_t count = 0;
    };
    class Walk;

    void choose_heads(const TensorView& view, std::size_t head_axis,
                      const std::optional<std::vector<std::int64_t>>& heads);
    void add_axis(const Axis& axis);
    std::int64_t offset(const Axis& axis, std::int64_t index) const;
    const std::byte* at(std::int64_t offset) const;
    void cast_run(const Run& run, std::byte* target) const;
    void compute(std::uint64_t begin, std::size_t count, float* results) const;
    void fold_heads(std::uint64_t begin, std::size_t count, float* results) const;
    float row_entropy(std::int64_t offset) const;

    const std::byte* data_;
    DType source_;
    DType target_;
    HeadReduction reduction_;
    std::vector<std::int64_t> head_offsets_;  // in elements, in the order given
    std::vector<Axis> axes_;                  // of the result, slowest first, neighbours merged; never empty
    Axis row_;                                // entropy: the axis that goes
    Shape shape_;
    std::uint64_t elements_ = 1;
    CastFunction cast_;             // of elements that stand side by side: to float32, or to the target
    StridedCastFunction strided_;   // of others
    CastFunction store_ = nullptr;  // of float32 results to the target
    const detail::HeadLoops* loops_;
    CpuLevel level_;
    std::vector<float> scales_;
};

}  // namespace nsf
