#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/element_reader.hpp"
#include "naive_tensor.hpp"

namespace nsf {
namespace {

using testing_support::contiguous_tensor;
using testing_support::gather;
using testing_support::OwnedTensor;
using testing_support::pick_below;
using testing_support::Random;
using testing_support::random_shape;
using testing_support::selected_shape;
using testing_support::store_naively;
using testing_support::Stored;
using testing_support::strided_tensor;

// Reads everything in pieces of random sizes, odd ones among them, as blocks of the ring cut a record.
std::vector<std::byte> read_in_pieces(ElementReader& reader, std::size_t item, Random& random) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(reader.elements()) * item, std::byte{0xEE});
    std::size_t done = 0;
    while (done < reader.elements()) {
        const std::size_t left = static_cast<std::size_t>(reader.elements()) - done;
        const std::size_t piece =
            std::min(left, pick_below(random, 4) == 0 ? left : 1 + pick_below(random, 13));
        reader.read(bytes.data() + done * item, piece);
        done += piece;
    }
    return bytes;
}

std::string describe(const TensorView& view, const Selection* selection) {
    std::string text = std::string(name(view.dtype)) + " shape";
    for (const std::int64_t size : view.shape) text += " " + std::to_string(size);
    text += " strides";
    for (const std::int64_t stride : view.strides) text += " " + std::to_string(stride);
    if (selection != nullptr) {
        text += " axis " + std::to_string(selection->axis) + " rows " + std::to_string(selection->rows) +
                " of " + std::to_string(selection->per_row);
    }
    return text;
}

// NaN scales compare by their bits.
std::vector<std::uint32_t> bits(const std::vector<float>& values) {
    std::vector<std::uint32_t> all;
    for (const float value : values) all.push_back(std::bit_cast<std::uint32_t>(value));
    return all;
}

void expect_as_naive(const TensorView& view, const Selection* selection, DType target, Random& random) {
    SCOPED_TRACE(describe(view, selection) + " as " + std::string(name(target)));
    const CastRules rules;
    const Shape shape = selected_shape(view, selection);
    std::size_t rows = 1;
    for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis) rows *= static_cast<std::size_t>(shape[axis]);
    const std::size_t row = shape.empty() ? 1 : static_cast<std::size_t>(shape.back());
    const Stored expected = store_naively(gather(view, selection), view.dtype, target, rules, row, rows);

    ElementReader reader(view, selection, target, rules);
    ASSERT_EQ(reader.elements() * item_size(target), expected.bytes.size());
    ASSERT_EQ(reader.quantizes(), target == DType::i8 && is_floating(view.dtype));
    if (reader.quantizes()) {
        ASSERT_EQ(bits(reader.row_scales()), bits(expected.scales));
        ASSERT_EQ(bits(reader.scales()), bits(expected.scales));
    }
    ASSERT_EQ(read_in_pieces(reader, item_size(target), random), expected.bytes);
}

std::vector<DType> targets_of(DType source) {
    if (!is_floating(source)) return {source};
    std::vector<DType> targets = {DType::f32,       DType::bf16,    DType::f16,
                                  DType::f8_e4m3fn, DType::f8_e5m2, DType::i8};
    if (source == DType::f64) targets.push_back(source);
    return targets;
}

DType random_dtype(Random& random) { return static_cast<DType>(pick_below(random, dtype_count)); }

// Some indices of an axis, in any order, repeated or none at all; per row where the tensor has rows.
Selection random_selection(Random& random, const Shape& shape, bool may_take_last) {
    Selection selection;
    const std::size_t axes = may_take_last ? shape.size() : shape.size() - 1;
    selection.axis = pick_below(random, axes);
    const std::int64_t size = shape[selection.axis];
    if (selection.axis > 0 && shape[0] > 1 && pick_below(random, 2) == 0) {
        selection.rows = static_cast<std::size_t>(shape[0]);
    }
    selection.per_row = size == 0 ? 0 : pick_below(random, 5);
    for (std::size_t i = 0; i < selection.rows * selection.per_row; ++i) {
        selection.indices.push_back(
            static_cast<std::int64_t>(pick_below(random, static_cast<std::size_t>(size))));
    }
    return selection;
}

TEST(ElementReader, AnyLayoutOfAnyRankAndDtype) {
    Random random(1);
    for (std::size_t rank = 0; rank <= 6; ++rank) {
        for (int i = 0; i < 150; ++i) {
            const OwnedTensor tensor =
                strided_tensor(random, random_dtype(random), random_shape(random, rank));
            const std::vector<DType> targets = targets_of(tensor.view.dtype);
            expect_as_naive(tensor.view, nullptr, targets[pick_below(random, targets.size())], random);
            if (HasFatalFailure()) return;
        }
    }
}

TEST(ElementReader, EveryCastThatTheEngineOffers) {
    Random random(2);
    for (std::size_t code = 0; code < dtype_count; ++code) {
        const auto source = static_cast<DType>(code);
        for (const DType target : targets_of(source)) {
            expect_as_naive(contiguous_tensor(random, source, {3, 1, 67}).view, nullptr, target, random);
            expect_as_naive(strided_tensor(random, source, {2, 3, 41}).view, nullptr, target, random);
        }
    }
}

TEST(ElementReader, Selections) {
    Random random(3);
    for (std::size_t rank = 1; rank <= 5; ++rank) {
        for (int i = 0; i < 200; ++i) {
            const OwnedTensor tensor =
                strided_tensor(random, random_dtype(random), random_shape(random, rank));
            std::vector<DType> targets = targets_of(tensor.view.dtype);
            const DType target = targets[pick_below(random, targets.size())];
            const bool quantizes = target == DType::i8 && is_floating(tensor.view.dtype);
            if (quantizes && rank == 1) continue;
            const Selection selection = random_selection(random, tensor.view.shape, !quantizes);
            expect_as_naive(tensor.view, &selection, target, random);
            if (HasFatalFailure()) return;
        }
    }
}

// A row of the table for each row of the tensor, also where axis 0 could be merged with what follows.
TEST(ElementReader, SelectionsThatDifferFromRowToRow) {
    Random random(4);
    for (const Shape& shape :
         {Shape{2, 5, 3}, Shape{3, 1, 5, 2}, Shape{2, 2, 7, 3}, Shape{4, 2, 1, 3, 2}, Shape{3, 6}}) {
        for (std::size_t axis = 1; axis < shape.size(); ++axis) {
            const OwnedTensor tensor = contiguous_tensor(random, DType::f32, shape);
            Selection selection;
            selection.axis = axis;
            selection.rows = static_cast<std::size_t>(shape[0]);
            selection.per_row = 2;
            for (std::size_t i = 0; i < selection.rows * 2; ++i) {
                selection.indices.push_back(static_cast<std::int64_t>(i) % shape[axis]);
            }
            expect_as_naive(tensor.view, &selection, DType::f32, random);
            if (axis + 1 < shape.size()) expect_as_naive(tensor.view, &selection, DType::i8, random);
        }
    }
}

TEST(ElementReader, LongRunsInLargePieces) {
    Random random(5);
    const OwnedTensor contiguous = contiguous_tensor(random, DType::f32, {7, 1009});
    for (const DType target : {DType::f32, DType::bf16, DType::i8}) {
        expect_as_naive(contiguous.view, nullptr, target, random);
        TensorView transposed = contiguous.view;
        std::swap(transposed.shape[0], transposed.shape[1]);
        std::swap(transposed.strides[0], transposed.strides[1]);
        expect_as_naive(transposed, nullptr, target, random);
        TensorView backwards = contiguous.view;
        backwards.data += (7 * 1009 - 1) * sizeof(float);
        backwards.strides = {-1009, -1};
        expect_as_naive(backwards, nullptr, target, random);
    }
}

TEST(ElementReader, Nothing) {
    struct Case {
        Shape shape;
        std::size_t rows;  // an empty row has a scale as well
    };
    for (const Case& each :
         {Case{{0}, 1}, Case{{3, 0}, 3}, Case{{0, 3}, 0}, Case{{2, 4, 0}, 8}, Case{{2, 0, 3}, 0}}) {
        const TensorView view{nullptr, DType::f32, each.shape,
                              testing_support::contiguous_strides(each.shape)};
        ElementReader reader(view, nullptr, DType::bf16, {});
        EXPECT_EQ(reader.elements(), 0U);
        reader.read(nullptr, 0);
        ElementReader quantizing(view, nullptr, DType::i8, {});
        EXPECT_EQ(quantizing.elements(), 0U);
        EXPECT_EQ(quantizing.row_scales(), std::vector<float>(each.rows, 0.0F));
        quantizing.read(nullptr, 0);
    }
}

TEST(ElementReader, ScalesMayBeAskedForAgain) {
    Random random(6);
    const OwnedTensor tensor = contiguous_tensor(random, DType::bf16, {5, 9});
    ElementReader reader(tensor.view, nullptr, DType::i8, {});
    const auto first = bits(reader.row_scales());
    EXPECT_EQ(bits(reader.row_scales()), first);
    const Stored expected = store_naively(gather(tensor.view, nullptr), DType::bf16, DType::i8, {}, 9, 5);
    EXPECT_EQ(read_in_pieces(reader, 1, random), expected.bytes);
}

TEST(ElementReader, RefusesWhatCannotBeCast) {
    Random random(7);
    const auto refuses = [&](DType source, DType target) {
        const OwnedTensor tensor = contiguous_tensor(random, source, {2});
        EXPECT_THROW(ElementReader(tensor.view, nullptr, target, {}), std::invalid_argument)
            << name(source) << " to " << name(target);
    };
    refuses(DType::i32, DType::f32);
    refuses(DType::boolean, DType::i8);
    refuses(DType::c64, DType::f32);
    refuses(DType::f32, DType::f64);
    refuses(DType::f32, DType::i16);
    refuses(DType::i16, DType::i8);
    // A row of the last dimension has one scale: a selection along it would change what is quantised.
    const OwnedTensor tensor = contiguous_tensor(random, DType::f32, {2, 3});
    const Selection selection{1, 1, 1, {0}};
    EXPECT_THROW(ElementReader(tensor.view, &selection, DType::i8, {}), std::invalid_argument);
}

}  // namespace
}  // namespace nsf
