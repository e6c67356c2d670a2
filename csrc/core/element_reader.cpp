#include "core/element_reader.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace nsf {
ElementReader::ElementReader(const TensorView& view, const Selection* selection, DType target,
                             CastRules rules)
    : data_(view.data),
      source_size_(item_size(view.dtype)),
      target_size_(item_size(target)),
      source_(view.dtype),
      quantizes_(target == DType::i8 && is_floating(view.dtype)) {
    if (!quantizes_) {
        cast_ = find_cast(view.dtype, target, rules, cpu_level());
        strided_cast_ = find_strided_cast(view.dtype, target, rules);
        if (cast_ == nullptr || strided_cast_ == nullptr) {
            throw std::invalid_argument("no cast from " + std::string(name(view.dtype)) + " to " +
                                        std::string(name(target)));
        }
    }
    const std::size_t rank = view.shape.size();
    selects_ = selection != nullptr;
    if (selects_) {
        table_.reserve(selection->indices.size());
        for (const std::int64_t index : selection->indices)
            table_.push_back(index * view.strides[selection->axis]);
    }
    if (selection == nullptr && !quantizes_ &&
        view.contiguous()) {  // the common case: one run, no allocation
        elements_ = view.elements();
        run_ = Dimension{static_cast<std::int64_t>(elements_), 1, nullptr, false};
        return;
    }
    for (std::size_t axis = 0; axis < rank; ++axis) {
        Dimension dimension{view.shape[axis], view.strides[axis], nullptr, false};
        if (selection != nullptr && axis == selection->axis) {
            dimension.size = static_cast<std::int64_t>(selection->per_row);
            dimension.table = &table_;
            dimension.per_row = selection->rows > 1;
        }
        elements_ *= static_cast<std::uint64_t>(dimension.size);
        const bool is_row =
            quantizes_ && axis + 1 == rank;  // rows of the last dimension keep their own scale
        if (is_row) {
            if (dimension.table != nullptr)
                throw std::invalid_argument("cannot select along the last dimension");
            run_ = dimension;
        } else {
            add_dimension(dimension, selection != nullptr && selection->rows > 1);
        }
    }
    if (!quantizes_ && !outer_.empty() && outer_.back().table == nullptr) {
        run_ = outer_.back();
        outer_.pop_back();
    }
    if (run_.size == 1) run_.stride = 1;
    index_.assign(outer_.size(), 0);
    if (elements_ > 0) run_offset_ = outer_offset();
}

// Merges a dimension into the one before it where the two step through memory as one; one of size 1 says
// nothing. Where the selection differs from row to row, axis 0 must stay what it is: it picks the row of the
// table.
void ElementReader::add_dimension(const Dimension& dimension, bool keep_first) {
    const bool mergeable = !outer_.empty() && !(keep_first && outer_.size() == 1) &&
                           outer_.back().table == nullptr && dimension.table == nullptr;
    if (mergeable) {
        Dimension& previous = outer_.back();
        if (dimension.size == 1) return;
        if (previous.size == 1) {
            previous = dimension;
            return;
        }
        if (previous.stride == dimension.stride * dimension.size) {
            previous = Dimension{previous.size * dimension.size, dimension.stride, nullptr, false};
            return;
        }
    }
    outer_.push_back(dimension);
}

std::int64_t ElementReader::outer_offset() const {
    std::int64_t offset = 0;
    for (std::size_t i = 0; i < outer_.size(); ++i) {
        const Dimension& dimension = outer_[i];
        if (dimension.table == nullptr) {
            offset += index_[i] * dimension.stride;
        } else {
            const std::int64_t row = dimension.per_row ? index_[0] * dimension.size : 0;
            offset += (*dimension.table)[static_cast<std::size_t>(row + index_[i])];
        }
    }
    return offset;
}

void ElementReader::rewind() {
    std::fill(index_.begin(), index_.end(), 0);
    run_number_ = 0;
    run_position_ = 0;
    run_offset_ = outer_offset();
}

void ElementReader::next_run() {
    ++run_number_;
    run_position_ = 0;
    for (std::size_t i = outer_.size(); i-- > 0;) {
        run_offset_ += outer_[i].stride;
        if (++index_[i] < outer_[i].size) break;
        run_offset_ -= outer_[i].stride * outer_[i].size;
        index_[i] = 0;
    }
    if (selects_) run_offset_ = outer_offset();
}

const std::vector<float>& ElementReader::row_scales() {
    std::uint64_t rows = 1;
    for (const Dimension& dimension : outer_) rows *= static_cast<std::uint64_t>(dimension.size);
    scales_.assign(static_cast<std::size_t>(rows), 0.0F);
    if (elements_ == 0) return scales_;
    for (float& scale : scales_) {
        const std::byte* row = data_ + run_offset_ * static_cast<std::int64_t>(source_size_);
        scale = row_scale(source_, row, static_cast<std::ptrdiff_t>(run_.stride),
                          static_cast<std::size_t>(run_.size), cpu_level());
        next_run();
    }
    rewind();
    return scales_;
}

void ElementReader::read(std::byte* target, std::size_t count) {
    while (count > 0) {
        if (run_position_ == run_.size) next_run();
        const std::size_t piece = std::min(count, static_cast<std::size_t>(run_.size - run_position_));
        const std::byte* source =
            data_ + (run_offset_ + run_position_ * run_.stride) * static_cast<std::int64_t>(source_size_);
        const auto stride = static_cast<std::ptrdiff_t>(run_.stride);
        if (quantizes_) {
            quantize_row(source_, source, stride, reinterpret_cast<std::int8_t*>(target), piece,
                         scales_[static_cast<std::size_t>(run_number_)], cpu_level());
        } else if (stride == 1) {
            cast_(source, target, piece);
        } else {
            strided_cast_(source, stride, target, piece);
        }
        target += piece * target_size_;
        count -= piece;
        run_position_ += static_cast<std::int64_t>(piece);
    }
}

}  // namespace nsf
