#include "cuda/gather.hpp"

#include <algorithm>
#include <stdexcept>

namespace nsf::cuda {
namespace {

// Whether the indices go up or down by the same amount: then they are a dimension like any other.
bool is_progression(const std::vector<std::int64_t>& indices) {
    for (std::size_t i = 2; i < indices.size(); ++i) {
        if (indices[i] - indices[i - 1] != indices[1] - indices[0]) return false;
    }
    return !indices.empty();
}

}  // namespace

Gather::Gather(const TensorView& view, const Selection* selection, bool keep_rows)
    : item_size_(item_size(view.dtype)) {
    part_.data = view.data;
    const std::size_t rank = view.shape.size();
    const bool differs = selection != nullptr && selection->rows > 1;
    if (selection != nullptr && keep_rows && selection->axis + 1 == rank) {
        throw std::invalid_argument("cannot select along the last dimension");
    }
    for (std::size_t axis = 0; axis < rank; ++axis) {
        GatherDimension dimension{view.shape[axis], view.strides[axis], false};
        if (selection != nullptr && axis == selection->axis) {
            dimension.size = static_cast<std::int64_t>(selection->per_row);
            if (!differs && is_progression(selection->indices)) {
                const std::vector<std::int64_t>& indices = selection->indices;
                part_.data += indices[0] * dimension.stride * static_cast<std::int64_t>(item_size_);
                dimension.stride *= indices.size() > 1 ? indices[1] - indices[0] : 1;
            } else {
                dimension.looked_up = true;
                for (const std::int64_t index : selection->indices)
                    table_.push_back(index * dimension.stride);
                per_row_entries_ = differs ? selection->per_row : 0;
            }
        }
        elements_ *= static_cast<std::uint64_t>(dimension.size);
        if (axis + 1 < rank) rows_ *= static_cast<std::uint64_t>(dimension.size);
        // Where positions differ from row to row, axis 0 stays what it is: it picks the part of the table.
        const bool is_row = keep_rows && axis + 1 == rank;
        add(dimension, !is_row && !(differs && axis <= 1));
    }
    const bool has_run = !outer_.empty() && !outer_.back().looked_up && !(differs && outer_.size() == 1);
    if (has_run) {
        part_.length = outer_.back().size;
        part_.stride = outer_.back().stride;
        outer_.pop_back();
    }
    if (part_.length == 1) part_.stride = 1;
    distribute(differs);
}

// One of size 1 says nothing; two that step through memory as one are one.
void Gather::add(const GatherDimension& dimension, bool mergeable) {
    if (mergeable && !outer_.empty() && !dimension.looked_up && !outer_.back().looked_up) {
        GatherDimension& previous = outer_.back();
        if (dimension.size == 1) return;
        if (previous.size == 1) {
            previous = dimension;
            return;
        }
        if (previous.stride == dimension.stride * dimension.size) {
            previous = {previous.size * dimension.size, dimension.stride, false};
            return;
        }
    }
    outer_.push_back(dimension);
}

// Puts the innermost three dimensions into the part; those before them stay in outer_.
void Gather::distribute(bool per_row) {
    // Axis 0 is the part's third dimension, if there is room between it and the row.
    const bool in_part = per_row && outer_.size() <= 3;
    if (in_part) {
        part_.per_row = true;
        part_.dimensions[2] = outer_.front();
        outer_.erase(outer_.begin());
    }
    for (std::size_t i = 0; i < (in_part ? 2U : 3U) && !outer_.empty(); ++i) {
        part_.dimensions[i] = outer_.back();
        outer_.pop_back();
    }
    for (std::size_t i = 0; i < part_.dimensions.size(); ++i) {
        if (part_.dimensions[i].looked_up) part_.table_dimension = static_cast<int>(i) + 1;
    }
}

GatherPart Gather::part(std::uint64_t number) const {
    GatherPart part = part_;
    if (outer_.empty()) return part;
    std::int64_t offset = 0;
    // With outer_ not empty and positions that differ, axis 0 is its first: it picks the part of the table.
    std::uint64_t first_index = 0;
    std::vector<std::uint64_t> indices(outer_.size());
    for (std::size_t i = outer_.size(); i-- > 0;) {
        const auto size = static_cast<std::uint64_t>(outer_[i].size);
        indices[i] = number % size;
        number /= size;
        if (i == 0) first_index = indices[i];
    }
    const std::size_t table_part = per_row_entries_ * static_cast<std::size_t>(first_index);
    for (std::size_t i = 0; i < outer_.size(); ++i) {
        offset += outer_[i].looked_up ? table_[table_part + static_cast<std::size_t>(indices[i])]
                                      : static_cast<std::int64_t>(indices[i]) * outer_[i].stride;
    }
    part.data += offset * static_cast<std::int64_t>(item_size_);
    part.table_offset = table_part;
    return part;
}

}  // namespace nsf::cuda
