#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "core/head_reduce.hpp"
#include "head_results.hpp"
#include "naive_tensor.hpp"

namespace nsf {
namespace {

using testing_support::bits;
using testing_support::contiguous_tensor;
using testing_support::expect_same_elements;
using testing_support::gather;
using testing_support::Heads;
using testing_support::make_view;
using testing_support::OwnedTensor;
using testing_support::pick_below;
using testing_support::Random;
using testing_support::random_floating;
using testing_support::random_heads;
using testing_support::random_shape;
using testing_support::read_in_pieces;
using testing_support::reduce;
using testing_support::rounded;
using testing_support::strided_tensor;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float inf = std::numeric_limits<float>::infinity();

const std::vector<HeadReduction> exact = {HeadReduction::mean, HeadReduction::sum, HeadReduction::max,
                                          HeadReduction::l2_norm};

// The four reductions, by the definition in the header, from the elements in C order with the heads outermost.
std::vector<float> reduce_naively(const std::vector<float>& by_head, std::size_t heads,
                                  HeadReduction reduction) {
    const std::size_t count = by_head.size() / heads;
    std::vector<float> results(count);
    for (std::size_t i = 0; i < count; ++i) {
        float sum = by_head[i];
        float largest = by_head[i];
        float squares = rounded(by_head[i] * by_head[i]);
        for (std::size_t head = 1; head < heads; ++head) {
            const float x = by_head[head * count + i];
            sum = rounded(sum + x);
            if (std::isnan(x) || x > largest) largest = x;
            squares = rounded(squares + rounded(x * x));
        }
        results[i] = reduction == HeadReduction::mean  ? sum / static_cast<float>(heads)
                     : reduction == HeadReduction::sum ? sum
                     : reduction == HeadReduction::max ? largest
                                                       : std::sqrt(squares);
        if (std::isnan(results[i])) results[i] = nan;
    }
    return results;
}

// The chosen heads as float32, heads outermost, then the other axes in their order.
std::vector<float> gather_by_head(const TensorView& view, std::size_t axis,
                                  const std::vector<std::int64_t>& heads) {
    TensorView turned = view;
    for (std::size_t i = axis; i > 0; --i) {
        std::swap(turned.shape[i], turned.shape[i - 1]);
        std::swap(turned.strides[i], turned.strides[i - 1]);
    }
    const Selection selection{0, 1, heads.size(), heads};
    const std::vector<std::byte> elements = gather(turned, &selection);
    std::vector<float> values(elements.size() / item_size(view.dtype));
    find_cast(view.dtype, DType::f32, {}, CpuLevel::scalar)(
        elements.data(), reinterpret_cast<std::byte*>(values.data()), values.size());
    return values;
}

TEST(HeadReduce, AnyLayoutAxisHeadsAndDtypeInAnyPieces) {
    Random random(1);
    for (int i = 0; i < 600; ++i) {
        Shape shape = random_shape(random, 4);
        const std::size_t axis = 1 + pick_below(random, 2);
        shape[axis] = 1 + static_cast<std::int64_t>(pick_below(random, 9));
        if (i % 3 == 0) shape[3] = static_cast<std::int64_t>(pick_below(random, 70));
        const OwnedTensor tensor = strided_tensor(random, random_floating(random), shape);
        std::vector<std::int64_t> all(static_cast<std::size_t>(shape[axis]));
        std::iota(all.begin(), all.end(), std::int64_t{0});
        const Heads heads = i % 2 == 0 ? Heads{} : Heads{random_heads(random, shape[axis])};
        const std::vector<float> by_head = gather_by_head(tensor.view, axis, heads.value_or(all));
        const DType target = reference::targets[pick_below(random, reference::targets.size())];
        Shape reduced = shape;
        reduced.erase(reduced.begin() + static_cast<std::ptrdiff_t>(axis));
        for (const HeadReduction reduction : exact) {
            SCOPED_TRACE("case " + std::to_string(i) + ", reduction " +
                         std::to_string(static_cast<int>(reduction)));
            const std::vector<float> expected =
                reduce_naively(by_head, heads.value_or(all).size(), reduction);
            for (const CpuLevel level : reference::levels()) {
                const HeadReducer reducer(tensor.view, axis, reduction, heads, target, {}, level);
                ASSERT_EQ(reducer.shape(), reduced);
                ASSERT_EQ(reducer.elements(), expected.size());
                expect_same_elements(target, read_in_pieces(reducer, target, random), expected);
                if (HasFatalFailure()) return;
            }
        }
    }
}

TEST(HeadReduce, RowsLongerThanTheBuffers) {
    Random random(2);
    for (const DType source : {DType::f32, DType::bf16, DType::f16, DType::f64}) {
        for (const Shape& shape : {Shape{1, 3, 5, 1009}, Shape{2, 3, 1, 5003}}) {
            const OwnedTensor tensor = contiguous_tensor(random, source, shape);
            TensorView turned = tensor.view;  // [batch, positions, heads, head size]
            std::swap(turned.shape[1], turned.shape[2]);
            std::swap(turned.strides[1], turned.strides[2]);
            for (const HeadReduction reduction : exact) {
                const std::vector<float> expected =
                    reduce_naively(gather_by_head(tensor.view, 1, {0, 1, 2}), 3, reduction);
                const HeadReducer plain(tensor.view, 1, reduction, std::nullopt, DType::f32, {});
                expect_same_elements(DType::f32, read_in_pieces(plain, DType::f32, random), expected);
                const HeadReducer other(turned, 2, reduction, std::nullopt, DType::f32, {});
                expect_same_elements(DType::f32, read_in_pieces(other, DType::f32, random), expected);
                if (HasFatalFailure()) return;
            }
        }
    }
}

TEST(HeadReduce, Select) {
    Random random(3);
    for (int i = 0; i < 400; ++i) {
        Shape shape = random_shape(random, 4);
        const std::size_t axis = 1 + pick_below(random, 2);
        shape[axis] = 1 + static_cast<std::int64_t>(pick_below(random, 9));
        const OwnedTensor tensor = strided_tensor(random, random_floating(random), shape);
        const std::vector<std::int64_t> heads = random_heads(random, shape[axis]);
        const DType target = reference::targets[pick_below(random, reference::targets.size())];
        const Selection selection{axis, 1, heads.size(), heads};
        const std::vector<std::byte> elements = gather(tensor.view, &selection);
        const std::size_t count = elements.size() / item_size(tensor.view.dtype);
        std::vector<std::byte> expected(count * item_size(target));
        find_cast(tensor.view.dtype, target, {}, cpu_level())(elements.data(), expected.data(), count);
        const HeadReducer reducer(tensor.view, axis, HeadReduction::select, heads, target, {});
        shape[axis] = static_cast<std::int64_t>(heads.size());
        ASSERT_EQ(reducer.shape(), shape);
        ASSERT_EQ(read_in_pieces(reducer, target, random), expected) << "case " << i;
    }
}

TEST(HeadReduce, ProductsAreRoundedBeforeTheyAreAdded) {
    // Two numbers whose norm shows whether the second product was rounded before it was added.
    float x = 1.0F;
    const float first = 1.5811388F;
    const auto differ = [&] {
        const float square = rounded(first * first);
        return bits(std::sqrt(rounded(square + rounded(x * x)))) != bits(std::sqrt(std::fma(x, x, square)));
    };
    while (!differ()) x = std::nextafter(x, 2.0F);
    ASSERT_LT(x, 1.1F);
    std::vector<float> values(64, first);  // as many as vectors hold, so that no loop takes what is left over
    values.insert(values.end(), 64, x);
    const float expected = std::sqrt(rounded(rounded(first * first) + rounded(x * x)));
    for (const CpuLevel level : reference::levels()) {
        for (const float norm :
             reduce(make_view(values, {1, 2, 1, 64}), 1, HeadReduction::l2_norm, {}, level)) {
            ASSERT_EQ(bits(norm), bits(expected)) << name(level);
        }
    }
}

TEST(HeadReduce, ZerosInfinitiesAndNans) {
    const std::vector<float> values = {-0.0F, -0.0F, 0.0F,  inf,  nan,  -inf, -nan, 1.0F,  //
                                       0.0F,  -0.0F, -0.0F, -inf, 1.0F, -inf, 2.0F, nan};
    const TensorView view = make_view(values, {1, 2, 1, 8});
    const auto as_bits = [&](HeadReduction reduction) {
        std::vector<std::uint32_t> result;
        for (const float x : reduce(view, 1, reduction)) result.push_back(bits(x));
        return result;
    };
    const std::uint32_t n = 0x7fc0'0000;
    const std::uint32_t minus_zero = 0x8000'0000;
    using Expected = std::vector<std::uint32_t>;
    EXPECT_EQ(as_bits(HeadReduction::sum), (Expected{0, minus_zero, 0, n, n, bits(-inf), n, n}));
    EXPECT_EQ(as_bits(HeadReduction::mean), (Expected{0, minus_zero, 0, n, n, bits(-inf), n, n}));
    EXPECT_EQ(as_bits(HeadReduction::max),
              (Expected{minus_zero, minus_zero, 0, bits(inf), n, bits(-inf), n, n}));
    EXPECT_EQ(as_bits(HeadReduction::l2_norm), (Expected{0, 0, 0, bits(inf), n, bits(inf), n, n}));
}

// -------------------------------------------------------------------------------------------- int8, refusals

TEST(HeadReduce, Int8RowsAreThoseOfTheFloat32Result) {
    Random random(6);
    for (const HeadReduction reduction :
         {HeadReduction::mean, HeadReduction::max, HeadReduction::entropy, HeadReduction::select}) {
        for (const Shape& shape : {Shape{2, 3, 4, 5}, Shape{1, 2, 3, 5003}, Shape{2, 3, 2, 0}}) {
            const OwnedTensor tensor = contiguous_tensor(random, DType::f32, shape);
            HeadReducer reducer(tensor.view, 1, reduction, std::vector<std::int64_t>{1, 0}, DType::i8, {});
            ASSERT_TRUE(reducer.quantizes());
            const std::vector<float> results =
                reduce(tensor.view, 1, reduction, std::vector<std::int64_t>{1, 0});
            const std::vector<float> scales = reducer.row_scales();
            const auto size = static_cast<std::size_t>(reducer.shape().back());
            const std::vector<std::byte> codes = read_in_pieces(reducer, DType::i8, random);
            ASSERT_EQ(codes.size(), results.size());
            for (std::size_t row = 0; row < scales.size(); ++row) {
                const auto* source = reinterpret_cast<const std::byte*>(results.data() + row * size);
                ASSERT_EQ(bits(scales[row]), bits(row_scale(DType::f32, source, 1, size, CpuLevel::scalar)));
                std::vector<std::int8_t> expected(size);
                quantize_row(DType::f32, source, 1, expected.data(), size, scales[row], CpuLevel::scalar);
                for (std::size_t i = 0; i < size; ++i) {
                    ASSERT_EQ(static_cast<std::int8_t>(codes[row * size + i]), expected[i]);
                }
            }
        }
    }
}

TEST(HeadReduce, EmptyAxesGiveEmptyResults) {
    const std::vector<float> none(1);
    for (const HeadReduction reduction : exact) {
        EXPECT_TRUE(reduce(make_view(none, {2, 3, 0, 5}), 1, reduction).empty());
        EXPECT_TRUE(reduce(make_view(none, {0, 3, 4, 5}), 2, reduction).empty());
    }
    EXPECT_TRUE(reduce(make_view(none, {2, 3, 0, 5}), 1, HeadReduction::select).empty());
    EXPECT_EQ(reduce(make_view(none, {1, 2, 3, 0}), 1, HeadReduction::entropy), std::vector<float>(6, 0.0F));
}

std::string refusal(const TensorView& view, std::size_t axis, const Heads& heads, DType target) {
    try {
        const HeadReducer reducer(view, axis, HeadReduction::mean, heads, target, {});
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return "";
}

TEST(HeadReduce, RefusalsSayWhatToChange) {
    const std::vector<float> values(24);
    const TensorView view = make_view(values, {1, 3, 2, 4});
    EXPECT_EQ(refusal(view, 1, Heads{{2, 0}}, DType::f32), "");
    EXPECT_EQ(refusal(view, 1, Heads{std::vector<std::int64_t>{}}, DType::f32),
              "no heads are chosen; name at least one, or leave the list out");
    EXPECT_EQ(refusal(view, 1, Heads{{0, 3}}, DType::f32), "there is no head 3; the heads are 0 to 2");
    EXPECT_EQ(refusal(view, 1, Heads{{-1}}, DType::f32), "there is no head -1; the heads are 0 to 2");
    EXPECT_EQ(refusal(view, 1, Heads{{1, 0, 1}}, DType::f32), "head 1 is chosen twice; name each head once");
    EXPECT_EQ(refusal(view, 3, {}, DType::f32), "the head axis is 1 or 2, not 3; transpose the tensor");
    EXPECT_EQ(refusal(make_view(values, {4, 6}), 1, {}, DType::f32),
              "a reduction over heads needs a tensor of 4 axes, not 2; view it as [batch, heads, …] or "
              "[batch, positions, heads, …]");
    EXPECT_EQ(refusal(make_view(values, {1, 0, 2, 4}), 1, {}, DType::f32),
              "the tensor has no heads; check the head axis");
    EXPECT_EQ(refusal(view, 1, {}, DType::i32),
              "a reduction over heads cannot be stored as int32; use float32, bfloat16, float16, "
              "float8_e4m3fn, float8_e5m2 or int8");
    TensorView integers = view;
    integers.dtype = DType::i64;
    EXPECT_EQ(refusal(integers, 1, {}, DType::f32),
              "heads of dtype int64 cannot be reduced; cast the tensor to a floating type first");
}

TEST(HeadReduce, Names) {
    EXPECT_EQ(head_reduction_from_name("mean"), HeadReduction::mean);
    EXPECT_EQ(head_reduction_from_name("select"), HeadReduction::select);
    EXPECT_EQ(head_reduction_from_name("l2_norm"), HeadReduction::l2_norm);
    EXPECT_EQ(head_reduction_from_name("average"), std::nullopt);
}

#if defined(__x86_64__)
TEST(HeadReduce, TheThreadsFloatModeIsNoMatterAndComesBack) {
    const std::vector<float> values = {0x1p-140F, 1.0F, 0x1p-140F, 0x1p-24F};  // subnormal; a tie
    const TensorView view = make_view(values, {1, 2, 1, 2});
    std::vector<std::vector<float>> expected;
    for (const HeadReduction reduction : exact) expected.push_back(reduce(view, 1, reduction));
    expected.push_back(reduce(view, 1, HeadReduction::entropy));
    ASSERT_EQ(expected[1], (std::vector<float>{0x1p-139F, 1.0F}));
    const unsigned before = _mm_getcsr();
    const unsigned odd = before | 0x8040U | 0x4000U;  // flush results and operands, round upwards
    std::vector<std::vector<float>> got;
    _mm_setcsr(odd);
    for (const HeadReduction reduction : exact) got.push_back(reduce(view, 1, reduction));
    got.push_back(reduce(view, 1, HeadReduction::entropy));
    const unsigned after = _mm_getcsr();
    _mm_setcsr(before);
    EXPECT_EQ(after & ~0x3fU, odd & ~0x3fU);  // less the sticky flags
    for (std::size_t i = 0; i < got.size(); ++i) {
        for (std::size_t j = 0; j < got[i].size(); ++j) EXPECT_EQ(bits(got[i][j]), bits(expected[i][j]));
    }
}
#endif

}  // namespace
}  // namespace nsf
