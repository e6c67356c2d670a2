// A tensor in memory that somebody else owns, and the choice of positions along its sequence axis.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/dtype.hpp"
#include "core/record.hpp"

namespace nsf {

// strides count elements and may be zero or negative.
struct TensorView {
    const std::byte* data = nullptr;  // on a device: its address there, which the host must not follow
    DType dtype = DType::u8;
    Shape shape;
    Shape strides;
    int device = host;       // the device's number, or host
    void* stream = nullptr;  // on a device: the stream on which the tensor is computed
    bool stays = false;      // on a device: a slot of a CUDA graph, which only its next replay writes again

    static constexpr int host = -1;

    std::uint64_t elements() const {
        std::uint64_t count = 1;
        for (const std::int64_t size : shape) count *= static_cast<std::uint64_t>(size);
        return count;
    }
    // Whether the elements stand one behind the other in C order.
    bool contiguous() const {
        std::int64_t expected = 1;
        for (std::size_t axis = shape.size(); axis-- > 0;) {
            if (shape[axis] != 1 && strides[axis] != expected) return false;
            expected *= shape[axis];
        }
        return true;
    }
};

// Keeps only some indices of one axis. `indices` holds `per_row` entries for each index of axis 0 (rows > 1:
// rows differ, and `axis` is not 0), or `per_row` entries in all (rows == 1: the same for every row).
struct Selection {
    std::size_t axis = 0;
    std::size_t rows = 1;
    std::size_t per_row = 0;
    std::vector<std::int64_t> indices;
};

}  // namespace nsf
