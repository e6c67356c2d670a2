// Tensors of any layout, and the naive twin of the engine's reader: one index after the other, in C order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "core/cast.hpp"
#include "core/tensor_view.hpp"

namespace nsf::testing_support {

using Random = std::mt19937_64;

inline std::size_t pick_below(Random& random, std::size_t end) {
    return static_cast<std::size_t>(random() % end);
}

// Any bytes, or for floating types mostly values of about the same size, so that int8 codes differ.
inline void fill_elements(Random& random, DType dtype, std::byte* start, std::size_t count) {
    const bool any_bits = !is_floating(dtype) || pick_below(random, 4) == 0;
    for (std::size_t i = 0; i < count; ++i) {
        if (any_bits) {
            const std::uint64_t bits = random();
            std::memcpy(start + i * item_size(dtype), &bits, item_size(dtype));
            continue;
        }
        const double value = static_cast<double>(random() % 2001) / 250.0 - 4.0;
        const auto narrow = static_cast<float>(value);
        if (dtype == DType::f64) {
            std::memcpy(start + i * sizeof(double), &value, sizeof(double));
        } else {
            find_cast(DType::f32, dtype, {}, CpuLevel::scalar)(reinterpret_cast<const std::byte*>(&narrow),
                                                               start + i * item_size(dtype), 1);
        }
    }
}

// Owns its memory; a copy would leave the view behind.
struct OwnedTensor {
    OwnedTensor() = default;
    OwnedTensor(OwnedTensor&&) = default;
    OwnedTensor& operator=(OwnedTensor&&) = default;

    std::vector<std::byte> memory;
    TensorView view;
};

inline Shape contiguous_strides(const Shape& shape) {
    Shape strides(shape.size());
    std::int64_t stride = 1;
    for (std::size_t axis = shape.size(); axis-- > 0;) {
        strides[axis] = stride;
        stride *= shape[axis];
    }
    return strides;
}

inline OwnedTensor contiguous_tensor(Random& random, DType dtype, const Shape& shape) {
    OwnedTensor tensor;
    tensor.view = TensorView{nullptr, dtype, shape, contiguous_strides(shape)};
    tensor.memory.resize(static_cast<std::size_t>(tensor.view.elements()) * item_size(dtype));
    tensor.view.data = tensor.memory.data();
    fill_elements(random, dtype, tensor.memory.data(), static_cast<std::size_t>(tensor.view.elements()));
    return tensor;
}

// Axes in any order in memory, gaps, negative and zero strides, and a start that is aligned to nothing.
inline OwnedTensor strided_tensor(Random& random, DType dtype, const Shape& shape) {
    OwnedTensor tensor;
    std::vector<std::size_t> order(shape.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    if (pick_below(random, 2) == 0) {
        std::reverse(order.begin(), order.end());  // as in a contiguous tensor: neighbours can be merged
    } else {
        std::shuffle(order.begin(), order.end(), random);
    }
    Shape strides(shape.size());
    std::int64_t extent = 1;
    std::int64_t first = 0;
    for (const std::size_t axis : order) {
        const std::size_t kind = pick_below(random, 8);
        if (kind == 0) continue;  // expanded: stride 0
        const std::int64_t stride = extent * (kind == 1 ? 2 : 1);
        const std::int64_t size = std::max<std::int64_t>(shape[axis], 1);
        strides[axis] = kind == 2 ? -stride : stride;
        if (kind == 2) first += (size - 1) * stride;
        extent = stride * size;
    }
    const std::size_t item = item_size(dtype);
    const std::size_t odd = pick_below(random, 3);
    tensor.memory.resize(static_cast<std::size_t>(extent) * item + odd);
    fill_elements(random, dtype, tensor.memory.data() + odd, static_cast<std::size_t>(extent));
    tensor.view = TensorView{tensor.memory.data() + odd + static_cast<std::size_t>(first) * item, dtype,
                             shape, strides};
    return tensor;
}

inline Shape random_shape(Random& random, std::size_t rank) {
    Shape shape(rank);
    for (std::int64_t& size : shape) {
        size = pick_below(random, 25) == 0
                   ? 0
                   : 1 + static_cast<std::int64_t>(pick_below(random, rank > 3 ? 3 : 6));
    }
    return shape;
}

inline Shape selected_shape(const TensorView& view, const Selection* selection) {
    Shape shape = view.shape;
    if (selection != nullptr) shape[selection->axis] = static_cast<std::int64_t>(selection->per_row);
    return shape;
}

// The elements that a reader must give, uncast, one behind the other.
inline std::vector<std::byte> gather(const TensorView& view, const Selection* selection) {
    const Shape shape = selected_shape(view, selection);
    const std::size_t item = item_size(view.dtype);
    std::uint64_t count = 1;
    for (const std::int64_t size : shape) count *= static_cast<std::uint64_t>(size);
    std::vector<std::byte> gathered;
    gathered.reserve(static_cast<std::size_t>(count) * item);
    std::vector<std::int64_t> position(shape.size());
    std::vector<std::int64_t> index;
    for (std::uint64_t number = 0; number < count; ++number) {
        index = position;
        if (selection != nullptr) {
            std::size_t at = static_cast<std::size_t>(index[selection->axis]);
            if (selection->rows > 1) at += static_cast<std::size_t>(index[0]) * selection->per_row;
            index[selection->axis] = selection->indices[at];
        }
        std::int64_t offset = 0;
        for (std::size_t axis = 0; axis < shape.size(); ++axis) offset += index[axis] * view.strides[axis];
        const std::byte* element = view.data + offset * static_cast<std::int64_t>(item);
        gathered.insert(gathered.end(), element, element + item);
        for (std::size_t axis = shape.size(); axis-- > 0;) {  // the last axis counts fastest
            if (++position[axis] < shape[axis]) break;
            position[axis] = 0;
        }
    }
    return gathered;
}

struct Stored {
    std::vector<std::byte> bytes;
    std::vector<float> scales;  // int8 only
};

// What the engine must store of these elements. `row`: the size of the last dimension (1 for a scalar);
// `rows`: how many there are, zero-size rows included.
inline Stored store_naively(const std::vector<std::byte>& elements, DType source, DType target,
                            CastRules rules, std::size_t row, std::size_t rows) {
    Stored stored;
    const std::size_t count = elements.size() / item_size(source);
    stored.bytes.resize(count * item_size(target));
    if (target != DType::i8 || !is_floating(source)) {
        find_cast(source, target, rules, CpuLevel::scalar)(elements.data(), stored.bytes.data(), count);
        return stored;
    }
    for (std::size_t i = 0; i < rows; ++i) {
        const std::byte* from = elements.data() + i * row * item_size(source);
        const float scale = row_scale(source, from, 1, row, CpuLevel::scalar);
        quantize_row(source, from, 1, reinterpret_cast<std::int8_t*>(stored.bytes.data()) + i * row, row,
                     scale, CpuLevel::scalar);
        stored.scales.push_back(scale);
    }
    return stored;
}

}  // namespace nsf::testing_support
