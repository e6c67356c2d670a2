// The entropy of attention rows, which is a reduction of head_reduce.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "core/head_reduce.hpp"
#include "head_results.hpp"

namespace nsf {
namespace {

using testing_support::bits;
using testing_support::expect_same_elements;
using testing_support::gather;
using testing_support::make_view;
using testing_support::OwnedTensor;
using testing_support::pick_below;
using testing_support::Random;
using testing_support::random_floating;
using testing_support::random_heads;
using testing_support::random_shape;
using testing_support::read_in_pieces;
using testing_support::reduce;
using testing_support::strided_tensor;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float inf = std::numeric_limits<float>::infinity();
constexpr double tolerance = 2e-6;

double true_entropy(const float* p, std::size_t count) {
    double sum = 0.0;
    for (std::size_t i = 0; i < count; ++i) {
        if (p[i] != 0.0F) sum -= static_cast<double>(p[i]) * std::log(static_cast<double>(p[i]));
    }
    return sum;
}

std::vector<float> attention_rows(Random& random, std::size_t rows, std::size_t size) {
    std::vector<float> p(rows * size);
    for (std::size_t row = 0; row < rows; ++row) {
        double sum = 0.0;
        const double sharpness = std::exp2(static_cast<double>(pick_below(random, 8)));
        std::vector<double> weights(size);
        for (double& weight : weights) {
            weight = std::exp(sharpness * (static_cast<double>(random() % 1000) / 1000.0 - 1.0));
            sum += weight;
        }
        for (std::size_t i = 0; i < size; ++i) p[row * size + i] = static_cast<float>(weights[i] / sum);
    }
    return p;
}

TEST(HeadEntropy, IsNearTheTruthAndTheSameAtEveryLevel) {
    Random random(4);
    for (const std::size_t size : {1U, 2U, 15U, 16U, 17U, 63U, 255U, 256U, 257U, 1000U, 5000U}) {
        const std::vector<float> p = attention_rows(random, 12, size);
        const TensorView view = make_view(p, {1, 3, 4, static_cast<std::int64_t>(size)});
        const std::vector<float> entropies = reduce(view, 1, HeadReduction::entropy);
        ASSERT_EQ(entropies.size(), 12U);
        for (std::size_t row = 0; row < 12; ++row) {
            const double truth = true_entropy(p.data() + row * size, size);
            ASSERT_NEAR(entropies[row], truth, tolerance * truth) << size;
        }
        for (const CpuLevel level : reference::levels()) {
            ASSERT_EQ(reduce(view, 1, HeadReduction::entropy, std::nullopt, level), entropies);
        }
    }
}

TEST(HeadEntropy, OfEverySizeOfProbability) {
    std::vector<float> p;
    for (std::uint32_t code = 1; code < bits(4.0F); code += 9973) p.push_back(std::bit_cast<float>(code));
    for (std::uint32_t near = 0; near < 4000; ++near) p.push_back(std::bit_cast<float>(bits(1.0F) - near));
    const auto rows = static_cast<std::int64_t>(p.size());
    const std::vector<float> entropies = reduce(make_view(p, {1, 1, rows, 1}), 1, HeadReduction::entropy);
    for (std::size_t i = 0; i < p.size(); ++i) {
        const double truth = true_entropy(&p[i], 1);
        const double unit = std::abs(truth) * 2.5e-7 + 2e-45;  // two units in the last place
        ASSERT_NEAR(entropies[i], truth, unit) << p[i];
    }
}

TEST(HeadEntropy, OfRowsThatAreNoDistribution) {
    const std::vector<float> values = {0,    0,     0, 0,      // masked whole
                                       0,    1,     0, -0.0F,  //
                                       0.5F, 0.5F,  0, nan,    //
                                       0.5F, -0.1F, 0, 0,      //
                                       0.5F, -inf,  0, 0,      //
                                       inf,  0,     0, 0,      //
                                       2,    2,     2, 2};
    const std::vector<float> entropies = reduce(make_view(values, {1, 1, 7, 4}), 1, HeadReduction::entropy);
    EXPECT_EQ(bits(entropies[0]), 0U);
    EXPECT_EQ(bits(entropies[1]), 0U);
    EXPECT_EQ(bits(entropies[2]), 0x7fc0'0000U);
    EXPECT_EQ(bits(entropies[3]), 0x7fc0'0000U);
    EXPECT_EQ(bits(entropies[4]), 0x7fc0'0000U);
    EXPECT_EQ(entropies[5], -inf);
    EXPECT_NEAR(entropies[6], -8 * std::log(2.0), 1e-5);
}

TEST(HeadEntropy, OfAnyLayoutInAnyPieces) {
    Random random(5);
    for (int i = 0; i < 300; ++i) {
        Shape shape = random_shape(random, 4);
        const std::size_t axis = 1 + pick_below(random, 2);
        shape[axis] = 1 + static_cast<std::int64_t>(pick_below(random, 5));
        shape[3] = static_cast<std::int64_t>(pick_below(random, 600));
        const OwnedTensor tensor = strided_tensor(random, random_floating(random), shape);
        const std::vector<std::int64_t> heads = random_heads(random, shape[axis]);
        const HeadReducer reducer(tensor.view, axis, HeadReduction::entropy, heads, DType::f32, {});
        const Selection selection{axis, 1, heads.size(), heads};
        const std::vector<std::byte> elements = gather(tensor.view, &selection);
        std::vector<float> p(elements.size() / item_size(tensor.view.dtype));
        find_cast(tensor.view.dtype, DType::f32, {}, CpuLevel::scalar)(
            elements.data(), reinterpret_cast<std::byte*>(p.data()), p.size());
        // The same rows side by side, whole, at another level: the definition's sums, not the layout's.
        const auto rows = static_cast<std::int64_t>(reducer.elements());
        const std::vector<float> expected = reduce(make_view(p, {1, 1, rows, shape[3]}), 1,
                                                   HeadReduction::entropy, std::nullopt, CpuLevel::scalar);
        shape[axis] = static_cast<std::int64_t>(heads.size());
        shape.pop_back();
        ASSERT_EQ(reducer.shape(), shape);
        expect_same_elements(DType::f32, read_in_pieces(reducer, DType::f32, random), expected);
        if (HasFatalFailure()) return;
    }
}

}  // namespace
}  // namespace nsf
