// Walks a strided tensor in its logical (C) order and hands out its elements, cast, in pieces of any size: a
// record may run on from one block of the ring into the next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/cast.hpp"
#include "core/tensor_view.hpp"

namespace nsf {

class ElementReader {
  public:
    // `target` is the stored dtype: the view's own, a float type for a float view, or int8 for a float view,
    // which is then quantised row by row (row_scales() computes the scales first). Throws
    // std::invalid_argument for other pairs. The view, the selection and the memory behind them must outlive
    // the reader.
    ElementReader(const TensorView& view, const Selection* selection, DType target, CastRules rules);

    std::uint64_t elements() const { return elements_; }
    bool quantizes() const { return quantizes_; }

    // One scale for each row of the last dimension. Must be called before read() where quantizes() is true.
    const std::vector<float>& row_scales();
    const std::vector<float>& scales() const { return scales_; }

    // Writes the next `count` elements to `target`; count must not exceed what is left.
    void read(std::byte* target, std::size_t count);

  private:
    struct Dimension {
        std::int64_t size = 1;
        std::int64_t stride = 0;  // in elements
        const std::vector<std::int64_t>* table =
            nullptr;           // a selected axis: element offsets in place of index * stride
        bool per_row = false;  // the table has `size` entries for each index of axis 0
    };

    void add_dimension(const Dimension& dimension, bool keep_first);
    void rewind();
    void next_run();
    std::int64_t outer_offset() const;

    const std::byte* data_;
    std::size_t source_size_;
    std::size_t target_size_;
    DType source_;
    bool quantizes_;
    bool selects_ = false;  // offsets on one axis come from a table
    CastFunction cast_ = nullptr;
    StridedCastFunction strided_cast_ = nullptr;

    std::vector<Dimension> outer_;     // all but the innermost run, slowest first
    std::vector<std::int64_t> index_;  // of the current run, one entry an outer dimension
    std::vector<std::int64_t> table_;  // the selection's indices times the axis' stride
    Dimension run_;                    // the innermost run: `size` elements, `stride` apart
    std::uint64_t elements_ = 1;
    std::uint64_t run_number_ = 0;
    std::int64_t run_offset_ = 0;    // of the current run's first element, in elements
    std::int64_t run_position_ = 0;  // elements of the current run already read
    std::vector<float> scales_;
};

}  // namespace nsf
