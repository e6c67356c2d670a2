// Reductions of made tensors, for the tests of head_reduce.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <numeric>
#include <optional>
#include <vector>

#include "cast_reference.hpp"
#include "core/head_reduce.hpp"
#include "naive_tensor.hpp"

namespace nsf::testing_support {

using Heads = std::optional<std::vector<std::int64_t>>;

// Keeps the compiler of this test from fusing what the definition rounds twice.
[[gnu::noinline]] inline float rounded(float x) {
    volatile float kept = x;
    return kept;
}

inline std::uint32_t bits(float x) { return std::bit_cast<std::uint32_t>(x); }

inline TensorView make_view(const std::vector<float>& values, const Shape& shape) {
    TensorView view;
    view.data = reinterpret_cast<const std::byte*>(values.data());
    view.dtype = DType::f32;
    view.shape = shape;
    view.strides = testing_support::contiguous_strides(shape);
    return view;
}

inline std::vector<std::byte> read_in_pieces(const HeadReducer& reducer, DType target, Random& random) {
    const std::size_t item = item_size(target);
    const auto total = static_cast<std::size_t>(reducer.elements());
    std::vector<std::byte> bytes(total * item, std::byte{0xEE});
    for (std::size_t done = 0; done < total;) {
        const std::size_t piece =
            std::min(total - done, pick_below(random, 4) == 0 ? total - done : 1 + pick_below(random, 13));
        reducer.read(done, piece, bytes.data() + done * item);
        done += piece;
    }
    return bytes;
}

inline std::vector<float> floats(const std::vector<std::byte>& bytes) {
    std::vector<float> values(bytes.size() / sizeof(float));
    if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
}

inline std::vector<float> reduce(const TensorView& view, std::size_t axis, HeadReduction reduction,
                                 const Heads& heads = std::nullopt, CpuLevel level = cpu_level()) {
    const HeadReducer reducer(view, axis, reduction, heads, DType::f32, {}, level);
    std::vector<std::byte> bytes(static_cast<std::size_t>(reducer.elements()) * sizeof(float));
    reducer.read(0, static_cast<std::size_t>(reducer.elements()), bytes.data());
    return floats(bytes);
}

inline std::vector<std::int64_t> random_heads(Random& random, std::int64_t available) {
    std::vector<std::int64_t> heads(static_cast<std::size_t>(available));
    std::iota(heads.begin(), heads.end(), std::int64_t{0});
    std::shuffle(heads.begin(), heads.end(), random);
    heads.resize(1 + pick_below(random, heads.size()));
    return heads;
}

inline DType random_floating(Random& random) {
    return reference::floating[pick_below(random, reference::floating.size())];
}

inline void expect_same_elements(DType dtype, const std::vector<std::byte>& got,
                                 const std::vector<float>& expected) {
    const CastFunction store = find_cast(DType::f32, dtype, {}, CpuLevel::scalar);
    std::vector<std::byte> wanted(expected.size() * item_size(dtype));
    store(reinterpret_cast<const std::byte*>(expected.data()), wanted.data(), expected.size());
    ASSERT_EQ(got.size(), wanted.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
        const reference::Bits a = reference::get(got.data(), dtype, i);
        const reference::Bits b = reference::get(wanted.data(), dtype, i);
        ASSERT_TRUE(reference::same(dtype, a, b)) << "element " << i << ": " << a << " for " << b;
    }
}

}  // namespace nsf::testing_support
