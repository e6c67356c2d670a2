// A strided tensor and a choice of positions, in the form in which kernels take them: rows of one stride, up to
// three dimensions of rows around them, one of which may be looked up in a table.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/tensor_view.hpp"

namespace nsf::cuda {

struct GatherDimension {
    std::int64_t size = 1;
    std::int64_t stride = 0;  // in elements
    bool looked_up = false;   // element offsets come from the table in place of index * stride
};

// What one launch can cover. dimensions[0] is the innermost of the dimensions of rows.
struct GatherPart {
    const std::byte* data = nullptr;
    std::int64_t length = 1;  // of a row
    std::int64_t stride = 1;  // of the elements in it
    std::array<GatherDimension, 3> dimensions{};
    int table_dimension = 0;       // 1, 2 or 3; 0: none
    bool per_row = false;          // the table has a part for each index of dimension 3
    std::size_t table_offset = 0;  // of this part's first entry

    std::int64_t rows() const { return dimensions[0].size * dimensions[1].size * dimensions[2].size; }
};

class Gather {
  public:
    // keep_rows: rows are those of the tensor's last dimension (int8 has a scale for each of them); else
    // dimensions that lie in memory as one become one. Throws std::invalid_argument where the last dimension
    // is selected from and rows must be kept.
    Gather(const TensorView& view, const Selection* selection, bool keep_rows);

    std::uint64_t elements() const { return elements_; }
    // Of the whole record, where rows are kept.
    std::uint64_t rows() const { return rows_; }
    // Whether the record lies in memory as it will be stored, but for its element type.
    bool contiguous() const {
        return outer_.empty() && table_.empty() && part_.rows() == 1 && part_.stride == 1;
    }
    // Element offsets that the kernel looks up; empty where none are.
    const std::vector<std::int64_t>& table() const { return table_; }

    // The record is one part, or, where it has more dimensions than a launch can cover, several of the same
    // size one after the other.
    std::uint64_t part_rows() const { return static_cast<std::uint64_t>(part_.rows()); }
    std::uint64_t part_elements() const { return part_rows() * static_cast<std::uint64_t>(part_.length); }
    GatherPart part(std::uint64_t number) const;

  private:
    void add(const GatherDimension& dimension, bool mergeable);
    void distribute(bool per_row);

    std::size_t item_size_;
    std::vector<GatherDimension> outer_;  // first all dimensions of rows, then those that no launch covers
    std::vector<std::int64_t> table_;
    std::size_t per_row_entries_ = 0;  // of the table for each index of axis 0; 0: the same for all
    GatherPart part_;
    std::uint64_t elements_ = 1;
    std::uint64_t rows_ = 1;
};

}  // namespace nsf::cuda
