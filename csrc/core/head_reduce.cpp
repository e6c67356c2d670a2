#include "core/head_reduce.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/float_mode.hpp"
#include "core/head_reduce_loops.hpp"

namespace nsf {

namespace {

// Results computed at a time: they, and as many elements of one head as float32, stay in the first-level cache.
constexpr std::size_t chunk = 2048;
// Elements of a row whose terms are added up in float32. Part of the definition of the entropy.
constexpr std::size_t entropy_block = 256;

constexpr std::array<std::pair<std::string_view, HeadReduction>, 6> reductions{{
    {"mean", HeadReduction::mean},
    {"sum", HeadReduction::sum},
    {"max", HeadReduction::max},
    {"l2_norm", HeadReduction::l2_norm},
    {"entropy", HeadReduction::entropy},
    {"select", HeadReduction::select},
}};

void require(bool condition, const std::string& message) {
    if (!condition) throw std::invalid_argument(message);
}

float identity(HeadReduction reduction) {
    if (reduction == HeadReduction::max) return -std::numeric_limits<float>::infinity();
    return reduction == HeadReduction::l2_norm ? 0.0F : -0.0F;
}

detail::FoldHead find_fold(HeadReduction reduction, const detail::HeadFolds& folds) {
    if (reduction == HeadReduction::max) return folds.max;
    return reduction == HeadReduction::l2_norm ? folds.squares : folds.sum;
}

}  // namespace

std::optional<HeadReduction> head_reduction_from_name(std::string_view text) noexcept {
    for (const auto& [name, reduction] : reductions) {
        if (name == text) return reduction;
    }
    return std::nullopt;
}

/// The result's elements from one of them on, in runs along the fastest axis.
class HeadReducer::Walk {
  public:
    Walk(const HeadReducer& reducer, std::uint64_t begin) : reducer_(reducer) {
        for (std::size_t axis = reducer.axes_.size(); axis-- > 0;) {
            const auto size = static_cast<std::uint64_t>(reducer.axes_[axis].size);
            index_[axis] = static_cast<std::int64_t>(begin % size);
            begin /= size;
        }
    }

    Run next(std::size_t most) {
        const std::vector<Axis>& axes = reducer_.axes_;
        Run run;
        for (std::size_t axis = 0; axis < axes.size(); ++axis) {
            run.offset += reducer_.offset(axes[axis], index_[axis]);
        }
        std::size_t axis = axes.size() - 1;
        const auto left = static_cast<std::size_t>(axes[axis].size - index_[axis]);
        run.count = axes[axis].is_table ? 1 : std::min(most, left);
        index_[axis] += static_cast<std::int64_t>(run.count);
        for (; axis > 0 && index_[axis] == axes[axis].size; --axis) {
            index_[axis] = 0;
            ++index_[axis - 1];
        }
        return run;
    }

  private:
    const HeadReducer& reducer_;
    std::array<std::int64_t, 4> index_{};
};

HeadReducer::HeadReducer(const TensorView& view, std::size_t head_axis, HeadReduction reduction,
                         const std::optional<std::vector<std::int64_t>>& heads, DType target, CastRules rules,
                         CpuLevel level)
    : data_(view.data),
      source_(view.dtype),
      target_(target),
      reduction_(reduction),
      loops_(&detail::head_loops(level)),
      level_(level) {
    require(view.shape.size() == 4, "a reduction over heads needs a tensor of 4 axes, not " +
                                        std::to_string(view.shape.size()) +
                                        "; view it as [batch, heads, …] or [batch, positions, heads, …]");
    require(head_axis == 1 || head_axis == 2,
            "the head axis is 1 or 2, not " + std::to_string(head_axis) + "; transpose the tensor");
    require(is_floating(source_), "heads of dtype " + std::string(name(source_)) +
                                      " cannot be reduced; cast the tensor to a floating type first");
    store_ = find_cast(DType::f32, target, rules, level);
    require(store_ != nullptr || target == DType::i8,
            "a reduction over heads cannot be stored as " + std::string(name(target)) +
                "; use float32, bfloat16, float16, float8_e4m3fn, float8_e5m2 or int8");
    const bool straight = reduction == HeadReduction::select && !quantizes();
    cast_ = find_cast(source_, straight ? target : DType::f32, rules, level);
    strided_ = find_strided_cast(source_, straight ? target : DType::f32, rules);

    choose_heads(view, head_axis, heads);
    const auto chosen = static_cast<std::int64_t>(head_offsets_.size());
    for (std::size_t axis = 0; axis < 4; ++axis) {
        const Axis plain{view.shape[axis], view.strides[axis], false};
        if (axis == 3 && reduction == HeadReduction::entropy) {
            row_ = plain;
        } else if (axis != head_axis) {
            add_axis(plain);
        } else if (reduction == HeadReduction::entropy || reduction == HeadReduction::select) {
            add_axis(heads ? Axis{chosen, 0, true} : plain);
        }
    }
    if (axes_.empty()) axes_.push_back(Axis{1, 1, false});
}

void HeadReducer::choose_heads(const TensorView& view, std::size_t head_axis,
                               const std::optional<std::vector<std::int64_t>>& heads) {
    const std::int64_t available = view.shape[head_axis];
    require(available > 0, "the tensor has no heads; check the head axis");
    require(!heads || !heads->empty(), "no heads are chosen; name at least one, or leave the list out");
    std::vector<bool> seen(static_cast<std::size_t>(available), false);
    const std::size_t count = heads ? heads->size() : static_cast<std::size_t>(available);
    for (std::size_t i = 0; i < count; ++i) {
        const std::int64_t head = heads ? (*heads)[i] : static_cast<std::int64_t>(i);
        require(head >= 0 && head < available, "there is no head " + std::to_string(head) +
                                                   "; the heads are 0 to " + std::to_string(available - 1));
        require(!seen[static_cast<std::size_t>(head)],
                "head " + std::to_string(head) + " is chosen twice; name each head once");
        seen[static_cast<std::size_t>(head)] = true;
        head_offsets_.push_back(head * view.strides[head_axis]);
    }
}

void HeadReducer::add_axis(const Axis& axis) {
    shape_.push_back(axis.size);
    elements_ *= static_cast<std::uint64_t>(axis.size);
    if (axis.size == 1 && !axis.is_table) return;
    if (!axes_.empty() && !axis.is_table && !axes_.back().is_table &&
        axes_.back().stride == axis.stride * axis.size) {
        axes_.back().size *= axis.size;  // the two are one in memory
        axes_.back().stride = axis.stride;
        return;
    }
    axes_.push_back(axis);
}

std::int64_t HeadReducer::offset(const Axis& axis, std::int64_t index) const {
    return axis.is_table ? head_offsets_[static_cast<std::size_t>(index)] : index * axis.stride;
}

const std::byte* HeadReducer::at(std::int64_t offset) const {
    return data_ + offset * static_cast<std::int64_t>(item_size(source_));
}

void HeadReducer::cast_run(const Run& run, std::byte* target) const {
    if (axes_.back().stride == 1) {
        cast_(at(run.offset), target, run.count);
    } else {
        strided_(at(run.offset), static_cast<std::ptrdiff_t>(axes_.back().stride), target, run.count);
    }
}

void HeadReducer::fold_heads(std::uint64_t begin, std::size_t count, float* results) const {
    alignas(64) std::array<float, chunk> elements;
    auto* const bytes = reinterpret_cast<std::byte*>(elements.data());
    const bool as_it_is = axes_.back().stride == 1 && (source_ == DType::f32 || source_ == DType::bf16);
    const detail::FoldHead fold =
        find_fold(reduction_, source_ == DType::bf16 && as_it_is ? loops_->bf16 : loops_->f32);
    std::fill_n(results, count, identity(reduction_));
    for (const std::int64_t head : head_offsets_) {
        Walk walk(*this, begin);
        for (std::size_t done = 0; done < count;) {
            Run run = walk.next(count - done);
            run.offset += head;
            if (!as_it_is) cast_run(run, bytes);
            fold(results + done, as_it_is ? at(run.offset) : bytes, run.count);
            done += run.count;
        }
    }
}

float HeadReducer::row_entropy(std::int64_t offset) const {
    alignas(64) std::array<float, entropy_block> p;
    auto* const bytes = reinterpret_cast<std::byte*>(p.data());
    const auto size = static_cast<std::size_t>(row_.size);
    double sum = 0.0;
    for (std::size_t done = 0; done < size; done += entropy_block) {
        const std::size_t part = std::min(entropy_block, size - done);
        const std::byte* source = at(offset + static_cast<std::int64_t>(done) * row_.stride);
        if (row_.stride == 1) {
            cast_(source, bytes, part);
        } else {
            strided_(source, static_cast<std::ptrdiff_t>(row_.stride), bytes, part);
        }
        const std::size_t lanes = (part + detail::entropy_lanes - 1) & ~(detail::entropy_lanes - 1);
        std::fill(p.begin() + static_cast<std::ptrdiff_t>(part),
                  p.begin() + static_cast<std::ptrdiff_t>(lanes), 0.0F);
        sum += static_cast<double>(loops_->entropy_sum(p.data(), lanes));
    }
    return static_cast<float>(0.0 - sum);
}

[[gnu::noinline]] void HeadReducer::compute(std::uint64_t begin, std::size_t count, float* results) const {
    const auto heads = static_cast<float>(head_offsets_.size());
    switch (reduction_) {
        case HeadReduction::mean:
            fold_heads(begin, count, results);
            loops_->divide(results, count, heads);
            break;
        case HeadReduction::l2_norm:
            fold_heads(begin, count, results);
            loops_->square_root(results, count);
            break;
        case HeadReduction::sum:
        case HeadReduction::max:
            fold_heads(begin, count, results);
            loops_->plain(results, count);
            break;
        case HeadReduction::entropy:
        case HeadReduction::select: {
            Walk walk(*this, begin);
            for (std::size_t done = 0; done < count;) {
                const Run run = walk.next(count - done);
                if (reduction_ == HeadReduction::select) {
                    cast_run(run, reinterpret_cast<std::byte*>(results + done));
                } else {
                    for (std::size_t i = 0; i < run.count; ++i) {
                        const auto row = static_cast<std::int64_t>(i) * axes_.back().stride;
                        results[done + i] = row_entropy(run.offset + row);
                    }
                }
                done += run.count;
            }
            if (reduction_ == HeadReduction::entropy) loops_->plain(results, count);
            break;
        }
    }
}

const std::vector<float>& HeadReducer::row_scales() {
    const auto size = static_cast<std::size_t>(shape_.back());
    std::uint64_t rows = 1;
    for (std::size_t axis = 0; axis + 1 < shape_.size(); ++axis) {
        rows *= static_cast<std::uint64_t>(shape_[axis]);
    }
    scales_.assign(static_cast<std::size_t>(rows), 0.0F);
    const DefaultFloatMode mode;
    alignas(64) std::array<float, chunk> results;
    const auto* const bytes = reinterpret_cast<const std::byte*>(results.data());
    for (std::size_t row = 0; row < scales_.size(); ++row) {
        for (std::size_t done = 0; done < size; done += chunk) {
            const std::size_t part = std::min(chunk, size - done);
            compute(std::uint64_t{row} * size + done, part, results.data());
            // The scale of a row is the largest of its parts' scales: dividing by 127 keeps their order.
            const float scale = row_scale(DType::f32, bytes, 1, part, level_);
            if (scale > scales_[row] || std::isnan(scale)) scales_[row] = scale;
        }
    }
    return scales_;
}

void HeadReducer::read(std::uint64_t begin, std::size_t count, std::byte* target) const {
    if (reduction_ == HeadReduction::select && !quantizes()) {
        if (count == 0) return;
        Walk walk(*this, begin);
        while (count > 0) {
            const Run run = walk.next(count);
            cast_run(run, target);
            target += run.count * item_size(target_);
            count -= run.count;
        }
        return;
    }
    const DefaultFloatMode mode;
    alignas(64) std::array<float, chunk> results;
    const auto* const bytes = reinterpret_cast<const std::byte*>(results.data());
    while (count > 0) {
        const std::size_t part = std::min(chunk, count);
        compute(begin, part, results.data());
        if (!quantizes()) store_(bytes, target, part);
        const auto row = static_cast<std::uint64_t>(shape_.back());
        for (std::size_t done = 0; quantizes() && done < part;) {
            const std::uint64_t at_row = (begin + done) / row;
            const std::size_t piece = std::min<std::uint64_t>(part - done, (at_row + 1) * row - begin - done);
            quantize_row(DType::f32, bytes + done * sizeof(float), 1,
                         reinterpret_cast<std::int8_t*>(target) + done, piece,
                         scales_[static_cast<std::size_t>(at_row)], level_);
            done += piece;
        }
        target += part * item_size(target_);
        begin += part;
        count -= part;
    }
}

}  // namespace nsf
