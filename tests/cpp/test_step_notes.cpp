#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/positions.hpp"
#include "core/step_clock.hpp"

namespace nsf {
namespace {

NoteKey key(const StepFacts& facts, const Shape& shape, SequenceKind kind = SequenceKind::pass) {
    return {facts, kind, shape.data(), shape.size()};
}

TEST(StepNotes, AreFoundByFactsKindAndLayout) {
    StepFacts facts;
    const StepFacts others;
    const std::string note = "{}";
    StepNotes notes;
    EXPECT_FALSE(notes.find(key(facts, {1, 2, 3})));
    notes.add(key(facts, {1, 2, 3}), &note);
    notes.add(key(facts, {4}), nullptr);
    EXPECT_EQ(notes.find(key(facts, {1, 2, 3})), &note);
    EXPECT_EQ(notes.find(key(facts, {1, 2, 900})), &note);  // the hidden size says nothing about positions
    EXPECT_EQ(notes.find(key(facts, {4})), nullptr);
    EXPECT_TRUE(notes.find(key(facts, {5})).has_value());
    EXPECT_FALSE(notes.find(key(others, {1, 2, 3})));
    EXPECT_FALSE(notes.find(key(facts, {2, 2, 3})));
    EXPECT_FALSE(notes.find(key(facts, {1, 3, 3})));
    EXPECT_FALSE(notes.find(key(facts, {2, 3})));
    EXPECT_FALSE(notes.find(key(facts, {1, 1, 2, 3})));
    EXPECT_FALSE(notes.find(key(facts, {1, 2, 3}, SequenceKind::logits)));
    notes.clear();
    EXPECT_FALSE(notes.find(key(facts, {1, 2, 3})));
}

TEST(StepNotes, TheOldestGoesWhereThereAreMany) {
    const StepFacts facts;
    const std::string note;
    StepNotes notes;
    constexpr std::int64_t most = StepNotes::capacity;
    for (std::int64_t length = 0; length < most + 2; ++length) notes.add(key(facts, {1, length, 3}), &note);
    EXPECT_FALSE(notes.find(key(facts, {1, 0, 3})));
    EXPECT_FALSE(notes.find(key(facts, {1, 1, 3})));
    for (std::int64_t length = 2; length < most + 2; ++length)
        EXPECT_TRUE(notes.find(key(facts, {1, length, 3})));
}

// A key leaves out nothing that the note depends on: equal keys, equal notes.
TEST(StepNotes, EqualKeysHaveEqualNotes) {
    std::vector<StepFacts> all(5);
    for (StepFacts& facts : all) {
        facts.batch = 2;
        facts.length = 3;
    }
    all[1].offset = 7;
    all[2].offset = -1;
    all[3].offset = 2;
    all[3].mask = {1, 1, 0, 1, 0, 1};
    all[4].mask = {0, 1, 1, 1, 1, 1};
    all[4].logits_kept = 1;
    std::vector<Shape> shapes{{}, {6}};
    for (const std::int64_t a : {1, 2, 6}) {
        for (const std::int64_t b : {1, 3, 5}) {
            shapes.push_back({a, b});
            for (const std::int64_t c : {1, 3, 4, 5}) {
                shapes.push_back({a, b, c});
                shapes.push_back({a, b, c, 4});
                shapes.push_back({a, c, b, 4});
            }
        }
    }
    const auto kinds = {SequenceKind::pass, SequenceKind::logits, SequenceKind::heads, SequenceKind::cache,
                        SequenceKind::foreign};
    for (const StepFacts& facts : all) {
        std::vector<std::pair<NoteKey, std::string>> seen;
        for (const SequenceKind kind : kinds) {
            for (const Shape& shape : shapes) {
                TensorView view;
                view.shape = shape;
                view.strides.assign(shape.size(), 0);
                const std::string note = keep_positions({}, facts, view, kind).note;
                const NoteKey its = key(facts, shape, kind);
                for (const auto& [other, its_note] : seen) {
                    if (other == its) {
                        EXPECT_EQ(note, its_note);
                    }
                }
                seen.emplace_back(its, note);
            }
        }
    }
}

TEST(StepNotes, AreForgottenWithTheFactsTheyWereMadeOf) {
    StepClock clock(1);
    const std::string note;
    const auto fill = [&] {
        Step& step = clock.fire(0);
        step.notes.add(key(step.facts, {1, 2, 3}), &note);
        EXPECT_TRUE(step.notes.find(key(step.facts, {1, 2, 3})));
    };
    const auto is_empty = [&] {
        Step& step = clock.fire(0);
        return !step.notes.find(key(step.facts, {1, 2, 3}));
    };
    StepFacts guessed;
    guessed.batch = guessed.length = 1;
    guessed.guessed = true;
    StepFacts known = guessed;
    known.guessed = false;

    clock.begin(guessed);
    fill();
    clock.begin(known);  // the inner pass knows better
    EXPECT_TRUE(is_empty());
    fill();
    clock.end();
    EXPECT_FALSE(is_empty());
    clock.end();
    clock.begin(known);
    EXPECT_TRUE(is_empty());
    fill();
    clock.begin_encoder(known);
    EXPECT_TRUE(is_empty());
    clock.end();

    clock.fire(0);  // outside of any pass: a step of its own at each call
    fill();
    EXPECT_TRUE(is_empty());
}

}  // namespace
}  // namespace nsf
