// Positions on tensors of other layouts than [batch, length, …], and the bytes that a selection stands for.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/element_reader.hpp"
#include "core/positions.hpp"
#include "naive_tensor.hpp"

namespace nsf {
namespace {

using testing_support::contiguous_strides;
using testing_support::OwnedTensor;
using testing_support::pick_below;
using testing_support::Random;

StepFacts facts(std::int64_t batch, std::int64_t length, std::int64_t offset = 0,
                std::vector<std::uint8_t> mask = {}) {
    StepFacts made;
    made.batch = batch;
    made.length = length;
    made.offset = offset;
    made.mask = std::move(mask);
    return made;
}

PositionSpec last() {
    PositionSpec spec;
    spec.kind = PositionSpec::Kind::last;
    return spec;
}

PositionSpec list(std::vector<std::int64_t> indices) {
    PositionSpec spec;
    spec.kind = PositionSpec::Kind::list;
    spec.list = std::move(indices);
    return spec;
}

// A tensor of consecutive numbers, so that an element tells where it comes from.
OwnedTensor counting_tensor(const Shape& shape) {
    OwnedTensor tensor;
    tensor.view = TensorView{nullptr, DType::i64, shape, contiguous_strides(shape)};
    tensor.memory.resize(static_cast<std::size_t>(tensor.view.elements()) * sizeof(std::int64_t));
    for (std::size_t i = 0; i < tensor.memory.size() / sizeof(std::int64_t); ++i) {
        const auto value = static_cast<std::int64_t>(i);
        std::memcpy(tensor.memory.data() + i * sizeof value, &value, sizeof value);
    }
    tensor.view.data = tensor.memory.data();
    return tensor;
}

std::vector<std::int64_t> stored(const Kept& kept) {
    ElementReader reader(kept.view, kept.selection ? &*kept.selection : nullptr, DType::i64, {});
    std::uint64_t expected = 1;
    for (const std::int64_t size : kept.shape) expected *= static_cast<std::uint64_t>(size);
    EXPECT_EQ(reader.elements(), expected);
    std::vector<std::int64_t> values(static_cast<std::size_t>(reader.elements()));
    reader.read(reinterpret_cast<std::byte*>(values.data()), values.size());
    return values;
}

using Values = std::vector<std::int64_t>;

TEST(PositionsLayout, TheSequenceIsTheLastAxisButOne) {
    const OwnedTensor heads = counting_tensor({2, 2, 3, 1});  // [batch, heads, length, width]
    const Kept kept = keep_positions(list({0, 2}), facts(2, 3), heads.view);
    EXPECT_EQ(kept.shape, (Shape{2, 2, 2, 1}));
    EXPECT_EQ(stored(kept), (Values{0, 2, 3, 5, 6, 8, 9, 11}));
    const Kept each = keep_positions(last(), facts(2, 3, 0, {1, 1, 0, 0, 1, 1}), heads.view);
    EXPECT_EQ(each.shape, (Shape{2, 2, 1, 1}));
    EXPECT_EQ(stored(each), (Values{1, 4, 8, 11}));
}

TEST(PositionsLayout, FlattenedRowsAreTakenApart) {
    const OwnedTensor flat = counting_tensor({6, 2});  // [batch * length, width]
    const Kept common = keep_positions(list({0, 2}), facts(2, 3, 5), flat.view);
    EXPECT_TRUE(common.nothing);  // positions 0 and 2 are in the cache
    const Kept both = keep_positions(list({5, 7}), facts(2, 3, 5), flat.view);
    EXPECT_EQ(both.shape, (Shape{4, 2}));
    EXPECT_EQ(both.note, R"({"positions":[5,7]})");
    EXPECT_EQ(stored(both), (Values{0, 1, 4, 5, 6, 7, 10, 11}));
    const Kept each = keep_positions(last(), facts(2, 3, 0, {1, 0, 0, 0, 1, 1}), flat.view);
    EXPECT_EQ(each.shape, (Shape{2, 2}));
    EXPECT_EQ(each.note, R"({"positions":[[0],[2]]})");
    EXPECT_EQ(stored(each), (Values{0, 1, 10, 11}));
}

TEST(PositionsLayout, FlattenedRowsOfAnyStride) {
    OwnedTensor flat = counting_tensor({6, 2});
    flat.view.data += 10 * sizeof(std::int64_t);
    flat.view.strides = {-2, 1};  // rows backwards
    const Kept kept = keep_positions(list({1}), facts(3, 2), flat.view);
    EXPECT_EQ(stored(kept), (Values{8, 9, 4, 5, 0, 1}));
}

TEST(PositionsLayout, OneRowWithoutABatchAxis) {
    const OwnedTensor matrix = counting_tensor({4, 2});
    const Kept known = keep_positions(list({11, 12}), facts(1, 4, 10), matrix.view);
    EXPECT_EQ(known.shape, (Shape{2, 2}));
    EXPECT_EQ(stored(known), (Values{2, 3, 4, 5}));
    const Kept padded = keep_positions(last(), facts(1, 4, 0, {1, 1, 0, 0}), matrix.view);
    EXPECT_EQ(padded.shape, (Shape{1, 2}));
    EXPECT_EQ(stored(padded), (Values{2, 3}));
    EXPECT_EQ(padded.note, R"({"positions":[1]})");
    // Of another length than the pass: a sequence of its own, counted from 0.
    const Kept other = keep_positions(list({0}), facts(1, 3, 10), matrix.view);
    EXPECT_EQ(stored(other), (Values{0, 1}));
    const Kept unknown = keep_positions(last(), facts(0, 0), matrix.view);
    EXPECT_EQ(stored(unknown), (Values{6, 7}));
}

TEST(PositionsLayout, WhereThereIsNoSequenceAxisPositionsAreAnError) {
    const auto refused = [](const StepFacts& step, const Shape& shape) {
        const OwnedTensor tensor = counting_tensor(shape);
        EXPECT_THROW(keep_positions(last(), step, tensor.view), std::invalid_argument) << shape.size();
        EXPECT_NO_THROW(keep_positions({}, step, tensor.view));
    };
    refused(facts(1, 4), {});
    refused(facts(1, 4), {4});
    refused(facts(2, 3), {5, 2});  // neither [batch * length, …] nor a single row
    refused(facts(2, 3), {2, 3});
    refused(facts(2, 3, 0, {1, 1, 0, 1, 1, 1}), {5, 2});
}

TEST(PositionsLayout, AnotherSequenceThanThatOfThePassCountsFromItsOwnStart) {
    const OwnedTensor tensor = counting_tensor({2, 4, 1});
    const Kept kept = keep_positions(list({0, -1}), facts(2, 3, 7, {1, 1, 0, 1, 1, 1}), tensor.view);
    EXPECT_EQ(kept.note, R"({"positions":[0,3]})");
    EXPECT_EQ(stored(kept), (Values{0, 3, 4, 7}));
    const Kept end = keep_positions(last(), facts(2, 3, 7, {1, 1, 0, 1, 1, 1}), tensor.view);
    EXPECT_EQ(stored(end), (Values{3, 7}));
}

TEST(PositionsLayout, ASequenceOfNoTokensIsKeptEmpty) {
    for (const PositionSpec& spec : {last(), list({0, -1})}) {
        const OwnedTensor tensor = counting_tensor({2, 0, 3});
        const Kept kept = keep_positions(spec, facts(2, 0), tensor.view);
        EXPECT_FALSE(kept.nothing);
        EXPECT_EQ(kept.shape, (Shape{2, 0, 3}));
        EXPECT_TRUE(stored(kept).empty());
    }
}

TEST(PositionsLayout, NoRowsAtAll) {
    const OwnedTensor tensor = counting_tensor({0, 3, 2});
    const Kept kept = keep_positions(last(), facts(0, 3), tensor.view);
    EXPECT_EQ(kept.shape, (Shape{0, 1, 2}));
    EXPECT_TRUE(stored(kept).empty());
}

// Any mask: what is stored is the row's own last real token, and the note agrees with it.
TEST(PositionsLayout, LastOfAnyMask) {
    Random random(5);
    for (int run = 0; run < 300; ++run) {
        const auto batch = static_cast<std::int64_t>(1 + pick_below(random, 4));
        const auto length = static_cast<std::int64_t>(1 + pick_below(random, 5));
        const bool flat = pick_below(random, 2) == 0;
        std::vector<std::uint8_t> mask(static_cast<std::size_t>(batch * length));
        for (std::uint8_t& real : mask) real = static_cast<std::uint8_t>(pick_below(random, 2));
        const OwnedTensor tensor = counting_tensor(flat ? Shape{batch * length, 2} : Shape{batch, length, 2});
        const Kept kept = keep_positions(last(), facts(batch, length, 0, mask), tensor.view);
        Values expected;
        for (std::int64_t row = 0; row < batch; ++row) {
            std::int64_t index = length - 1;
            for (std::int64_t i = 0; i < length; ++i) {
                if (mask[static_cast<std::size_t>(row * length + i)] != 0) index = i;
            }
            expected.push_back((row * length + index) * 2);
            expected.push_back((row * length + index) * 2 + 1);
        }
        ASSERT_EQ(stored(kept), expected);
    }
}

}  // namespace
}  // namespace nsf
