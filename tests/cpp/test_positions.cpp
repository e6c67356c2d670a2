#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "core/positions.hpp"
#include "naive_tensor.hpp"

namespace nsf {
namespace {

using testing_support::contiguous_strides;

using Indices = std::vector<std::int64_t>;
using Bound = std::optional<std::int64_t>;

TensorView view_of(const Shape& shape) {
    return TensorView{nullptr, DType::f32, shape, contiguous_strides(shape)};
}

StepFacts facts(std::int64_t batch, std::int64_t length, std::int64_t offset = 0,
                std::vector<std::uint8_t> mask = {}) {
    StepFacts made;
    made.batch = batch;
    made.length = length;
    made.offset = offset;
    made.mask = std::move(mask);
    return made;
}

PositionSpec all() { return {}; }
PositionSpec last() {
    PositionSpec spec;
    spec.kind = PositionSpec::Kind::last;
    return spec;
}
PositionSpec list(Indices indices) {
    PositionSpec spec;
    spec.kind = PositionSpec::Kind::list;
    spec.list = std::move(indices);
    return spec;
}
PositionSpec slice(Bound start, Bound stop, std::int64_t step = 1) {
    PositionSpec spec;
    spec.kind = PositionSpec::Kind::slice;
    spec.start = start;
    spec.stop = stop;
    spec.step = step;
    return spec;
}

Indices indices(const Kept& kept) { return kept.selection ? kept.selection->indices : Indices{}; }

TEST(Positions, AllOfAnythingIsKeptAsItIs) {
    for (const Shape& shape :
         {Shape{}, Shape{5}, Shape{2, 3}, Shape{2, 3, 4}, Shape{0, 3, 4}, Shape{2, 3, 4, 5}}) {
        const Kept kept = keep_positions(all(), facts(2, 3), view_of(shape));
        EXPECT_FALSE(kept.nothing);
        EXPECT_FALSE(kept.selection);
        EXPECT_EQ(kept.shape, shape);
        EXPECT_EQ(kept.view.shape, shape);
        EXPECT_EQ(kept.note, "");
    }
}

TEST(Positions, AllOfALaterPassSaysWhereItStands) {
    const auto note = [](const StepFacts& step, const Shape& shape) {
        const Kept kept = keep_positions(all(), step, view_of(shape));
        EXPECT_FALSE(kept.selection);
        EXPECT_EQ(kept.shape, shape);
        return kept.note;
    };
    EXPECT_EQ(note(facts(2, 1, 9), {2, 1, 8}), R"({"positions":[9]})");
    EXPECT_EQ(note(facts(2, 3, 9), {2, 3, 8}), R"({"positions":[9,10,11]})");
    EXPECT_EQ(note(facts(2, 3, 9), {2, 4, 3, 8}), R"({"positions":[9,10,11]})");
    EXPECT_EQ(note(facts(2, 3, 9), {6, 8}), R"({"positions":[9,10,11]})");
    EXPECT_EQ(note(facts(2, 3, 9, {0, 1, 1, 1, 1, 1}), {2, 3, 8}),
              R"({"positions":[9,10,11],"real_tokens":[[1,3],[0,3]]})");
    // Not of this pass, or without a sequence: counted from its own start.
    EXPECT_EQ(note(facts(2, 3, 9), {2, 4, 8}), "");
    EXPECT_EQ(note(facts(2, 3, 9), {8}), "");
    EXPECT_EQ(note(facts(0, 0, 9), {2, 1, 8}), "");
}

TEST(Positions, ACacheThatDoesNotSayHowManyTokensItHolds) {
    const TensorView view = view_of({2, 3, 8});
    EXPECT_EQ(keep_positions(all(), facts(2, 3, -1), view).note, R"({"positions":[]})");
    const Kept end = keep_positions(last(), facts(2, 3, -1), view);
    EXPECT_EQ(indices(end), Indices{2});
    EXPECT_EQ(end.note, R"({"positions":[]})");
    const Kept padded = keep_positions(last(), facts(2, 3, -1, {1, 0, 0, 1, 1, 1}), view);
    EXPECT_EQ(indices(padded), (Indices{0, 2}));
    EXPECT_EQ(padded.note, R"({"positions":[]})");
    EXPECT_THROW(keep_positions(list({0}), facts(2, 3, -1), view), std::invalid_argument);
    EXPECT_THROW(keep_positions(slice(0, 1), facts(2, 3, -1), view), std::invalid_argument);
    EXPECT_EQ(keep_positions(list({0}), facts(2, 3, -1), view_of({2, 4, 8})).note, R"({"positions":[0]})");
}

// A model that computes logits for the last positions of a pass only.
TEST(Positions, LogitsOfTheLastPositions) {
    StepFacts step = facts(2, 5, 10, {1, 1, 1, 1, 0, 0, 0, 1, 1, 1});
    step.logits_kept = 2;
    const TensorView view = view_of({2, 2, 8});
    EXPECT_EQ(keep_positions(all(), step, view, SequenceKind::logits).note,
              R"({"positions":[13,14],"real_tokens":[[0,1],[0,2]]})");
    const Kept each = keep_positions(last(), step, view, SequenceKind::logits);
    EXPECT_EQ(indices(each), (Indices{0, 1}));
    EXPECT_EQ(each.note, R"({"positions":[[13],[14]]})");
    EXPECT_EQ(indices(keep_positions(list({12, 14, -2}), step, view, SequenceKind::logits)), (Indices{1, 0}));
    EXPECT_TRUE(keep_positions(list({12}), step, view, SequenceKind::logits).nothing);
    EXPECT_EQ(indices(keep_positions(slice(11, std::nullopt, 2), step, view, SequenceKind::logits)),
              Indices{0});
    // Only logits are cut short; another tensor of that length is another sequence.
    EXPECT_EQ(keep_positions(all(), step, view).note, "");
    // More than the pass has, or all of it.
    step.logits_kept = 50;
    EXPECT_EQ(keep_positions(last(), step, view_of({2, 5, 8}), SequenceKind::logits).note,
              R"({"positions":[[13],[14]]})");
    // A row without a real token among those kept.
    step.mask = {1, 1, 0, 0, 0, 1, 1, 1, 1, 1};
    step.logits_kept = 1;
    EXPECT_EQ(keep_positions(last(), step, view_of({2, 1, 8}), SequenceKind::logits).note,
              R"({"positions":[14],"real_tokens":[[],[0,1]]})");
}

TEST(Positions, HeadsStandBehindTheSequence) {
    const StepFacts step = facts(2, 3, 4, {0, 1, 1, 1, 1, 0});
    const TensorView view = view_of({2, 3, 5, 8});
    const Kept whole = keep_positions(all(), step, view, SequenceKind::heads);
    EXPECT_EQ(whole.note, R"({"positions":[4,5,6],"real_tokens":[[1,3],[0,2]]})");
    const Kept ends = keep_positions(last(), step, view, SequenceKind::heads);
    EXPECT_EQ(ends.selection->axis, 1U);
    EXPECT_EQ(ends.shape, (Shape{2, 1, 5, 8}));
    EXPECT_EQ(indices(ends), (Indices{2, 1}));
    EXPECT_EQ(ends.note, R"({"positions":[[6],[5]]})");
    const Kept some = keep_positions(list({5}), step, view, SequenceKind::heads);
    EXPECT_EQ(some.shape, (Shape{2, 1, 5, 8}));
    EXPECT_EQ(some.note, R"({"positions":[5]})");
}

TEST(Positions, ACacheIsTheWholeSequence) {
    const auto note = [](const StepFacts& step, std::int64_t keys) {
        const Kept kept = keep_positions(all(), step, view_of({2, 4, keys, 8}), SequenceKind::cache);
        EXPECT_FALSE(kept.selection);
        EXPECT_EQ(kept.shape, (Shape{2, 4, keys, 8}));
        return kept.note;
    };
    EXPECT_EQ(note(facts(2, 3), 3), "");
    EXPECT_EQ(note(facts(2, 3, 0, {0, 1, 1, 1, 1, 1}), 3), R"({"real_tokens":[[1,3],[0,3]]})");
    EXPECT_EQ(note(facts(2, 1, 5), 6), "");                      // positions 0 to 5, not those of the pass
    EXPECT_EQ(note(facts(2, 1, 5), 4), R"({"positions":[]})");   // a window of them
    EXPECT_EQ(note(facts(2, 3, 0), 16), R"({"positions":[]})");  // room for more
    EXPECT_EQ(note(facts(2, 1, -1), 6), R"({"positions":[]})");
    EXPECT_EQ(note(facts(0, 0), 6), "");
    EXPECT_THROW(keep_positions(last(), facts(2, 3), view_of({2, 4, 3, 8}), SequenceKind::cache),
                 std::invalid_argument);
}

TEST(Positions, NothingIsKnownOfAnotherSequence) {
    const StepFacts step = facts(2, 3, 4, {0, 1, 1, 1, 1, 0});
    EXPECT_EQ(keep_positions(all(), step, view_of({2, 4, 3, 8}), SequenceKind::foreign).note, "");
}

TEST(Positions, LastOfARowWithoutPadding) {
    const Kept prefill = keep_positions(last(), facts(2, 5), view_of({2, 5, 8}));
    EXPECT_EQ(prefill.shape, (Shape{2, 1, 8}));
    ASSERT_TRUE(prefill.selection);
    EXPECT_EQ(prefill.selection->axis, 1U);
    EXPECT_EQ(prefill.selection->rows, 1U);
    EXPECT_EQ(prefill.selection->per_row, 1U);
    EXPECT_EQ(indices(prefill), Indices{4});
    EXPECT_EQ(prefill.note, R"({"positions":[4]})");
    const Kept decode = keep_positions(last(), facts(2, 1, 9), view_of({2, 1, 8}));
    EXPECT_EQ(indices(decode), Indices{0});
    EXPECT_EQ(decode.note, R"({"positions":[9]})");
}

TEST(Positions, ListsCountFromTheStartOfTheSequence) {
    const auto at = [](const PositionSpec& spec, std::int64_t offset, std::int64_t length) {
        return keep_positions(spec, facts(1, length, offset), view_of({1, length, 4}));
    };
    EXPECT_EQ(indices(at(list({0, 3, 9}), 0, 5)), (Indices{0, 3}));
    EXPECT_EQ(indices(at(list({3, 0, 3}), 0, 5)), (Indices{3, 0}));    // in its order, each once
    EXPECT_EQ(indices(at(list({4, -1, -5}), 0, 5)), (Indices{4, 0}));  // 4 is -1
    EXPECT_EQ(indices(at(list({-1, -5, -6}), 0, 5)), (Indices{4, 0}));
    EXPECT_EQ(indices(at(list({5, 6, 8}), 6, 3)), (Indices{0, 2}));
    EXPECT_EQ(indices(at(list({-1, -3, -4}), 6, 3)), (Indices{2, 0}));
    EXPECT_EQ(at(list({7}), 6, 3).note, R"({"positions":[7]})");
    EXPECT_EQ(at(list({-1}), 6, 3).note, R"({"positions":[8]})");
    EXPECT_EQ(at(list({7, 8}), 6, 3).shape, (Shape{1, 2, 4}));
    EXPECT_TRUE(at(list({5}), 6, 3).nothing);
    EXPECT_TRUE(at(list({9}), 6, 3).nothing);
    EXPECT_TRUE(at(list({std::numeric_limits<std::int64_t>::max()}), 6, 3).nothing);
    EXPECT_TRUE(at(list({std::numeric_limits<std::int64_t>::min()}), 6, 3).nothing);
}

// Python's own definition: the positions that range(*slice.indices(total)) gives, in its order.
Indices python_slice(Bound start, Bound stop, std::int64_t step, std::int64_t total) {
    const auto bound = [&](Bound given, std::int64_t absent) {
        if (!given) return absent;
        std::int64_t value = *given;
        const std::int64_t least = step > 0 ? 0 : -1;
        const std::int64_t most = step > 0 ? total : total - 1;
        if (value < 0) value += total;
        return value < least ? least : value > most ? most : value;
    };
    const std::int64_t from = bound(start, step > 0 ? 0 : total - 1);
    const std::int64_t to = bound(stop, step > 0 ? total : -1);
    Indices chosen;
    for (std::int64_t p = 0; p < total; ++p) {
        // p = from + k * step with k >= 0, before `to`
        const bool reached = step > 0 ? p >= from && p < to : p <= from && p > to;
        const std::uint64_t distance = static_cast<std::uint64_t>(step > 0 ? p - from : from - p);
        const std::uint64_t stride =
            step > 0 ? static_cast<std::uint64_t>(step) : -static_cast<std::uint64_t>(step);
        if (reached && distance % stride == 0) chosen.push_back(p);
    }
    if (step < 0) std::reverse(chosen.begin(), chosen.end());
    return chosen;
}

// Negative steps never come from Python, which refuses them; the code takes them, so it must take them right.
TEST(Positions, SlicesAreThoseOfPython) {
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
    constexpr std::int64_t least = std::numeric_limits<std::int64_t>::min();
    const std::vector<Bound> bounds = {std::nullopt, 0,  1,  2,  4,  6,    7,    100,
                                       most,         -1, -2, -5, -7, -100, least};
    const std::vector<std::int64_t> steps = {1, 2, 3, 5, 100, most, -1, -2, -4, -100, least};
    for (const std::int64_t offset : {0, 1, 4, 6}) {
        for (const std::int64_t length : {1, 2, 6}) {
            for (const Bound start : bounds) {
                for (const Bound stop : bounds) {
                    for (const std::int64_t step : steps) {
                        const Kept kept = keep_positions(slice(start, stop, step), facts(1, length, offset),
                                                         view_of({1, length, 2}));
                        Indices expected;
                        for (const std::int64_t p : python_slice(start, stop, step, offset + length)) {
                            if (p >= offset) expected.push_back(p - offset);
                        }
                        ASSERT_EQ(indices(kept), expected)
                            << start.value_or(-999) << ":" << stop.value_or(-999) << ":" << step << " of "
                            << offset << "+" << length;
                        ASSERT_EQ(kept.nothing, expected.empty());
                    }
                }
            }
        }
    }
}

TEST(Positions, LastRealTokenOfEachRow) {
    // Row 0 is padded on the right, row 1 on the left, row 2 is all padding, row 3 has none.
    const std::vector<std::uint8_t> mask = {1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1};
    const Kept kept = keep_positions(last(), facts(4, 4, 10, mask), view_of({4, 4, 8}));
    ASSERT_TRUE(kept.selection);
    EXPECT_EQ(kept.selection->rows, 4U);
    EXPECT_EQ(kept.selection->per_row, 1U);
    EXPECT_EQ(indices(kept), (Indices{1, 3, 3, 3}));
    EXPECT_EQ(kept.shape, (Shape{4, 1, 8}));
    EXPECT_EQ(kept.note, R"({"positions":[[11],[13],[13],[13]],"real_tokens":[[0,1],[0,1],[],[0,1]]})");
}

TEST(Positions, LastIsCommonWhereRowsAgree) {
    const Kept kept = keep_positions(last(), facts(2, 3, 0, {0, 1, 1, 0, 0, 1}), view_of({2, 3, 8}));
    EXPECT_EQ(kept.selection->rows, 1U);
    EXPECT_EQ(indices(kept), Indices{2});
    EXPECT_EQ(kept.note, R"({"positions":[2]})");
}

TEST(Positions, RealTokensOfWholeRecords) {
    const auto note = [](std::vector<std::uint8_t> mask, const Shape& shape) {
        return keep_positions(all(), facts(2, 3, 0, std::move(mask)), view_of(shape)).note;
    };
    EXPECT_EQ(note({0, 1, 1, 1, 1, 1}, {2, 3, 8}), R"({"real_tokens":[[1,3],[0,3]]})");
    EXPECT_EQ(note({1, 0, 1, 0, 0, 0}, {2, 3, 8}), R"({"real_tokens":[[0,1,2,3],[]]})");
    EXPECT_EQ(note({1, 1, 1, 1, 1, 1}, {2, 3, 8}), "");
    EXPECT_EQ(note({0, 1, 1, 1, 1, 1}, {2, 4, 3, 8}), R"({"real_tokens":[[1,3],[0,3]]})");  // heads
    EXPECT_EQ(note({0, 1, 1, 1, 1, 1}, {6, 8}), R"({"real_tokens":[[1,3],[0,3]]})");        // flattened
    // Not of this pass: the mask says nothing about it.
    EXPECT_EQ(note({0, 1, 1, 1, 1, 1}, {2, 4, 8}), "");
    EXPECT_EQ(note({0, 1, 1, 1, 1, 1}, {3, 3, 8}), "");
    EXPECT_EQ(note({0, 1, 1, 1, 1, 1}, {5, 8}), "");
    EXPECT_EQ(note({0, 1, 1, 1, 1, 1}, {8}), "");
    EXPECT_EQ(note({0, 1, 1, 1, 1, 1}, {}), "");
}

TEST(Positions, RealTokensFollowTheSelection) {
    const std::vector<std::uint8_t> mask = {0, 1, 1, 1, 1, 0, 0, 1};
    const auto note = [&](const PositionSpec& spec) {
        return keep_positions(spec, facts(2, 4, 0, mask), view_of({2, 4, 8})).note;
    };
    EXPECT_EQ(note(list({0, 1})), R"({"positions":[0,1],"real_tokens":[[1,2],[0,1]]})");
    EXPECT_EQ(note(list({1, 2})), R"({"positions":[1,2],"real_tokens":[[0,2],[]]})");
    EXPECT_EQ(note(list({3, 0})), R"({"positions":[3,0],"real_tokens":[[0,1],[0,2]]})");
    EXPECT_EQ(note(slice(1, std::nullopt)), R"({"positions":[1,2,3],"real_tokens":[[0,3],[2,3]]})");
    EXPECT_EQ(note(list({3})), R"({"positions":[3]})");
}

}  // namespace
}  // namespace nsf
