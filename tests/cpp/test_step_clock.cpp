#include <gtest/gtest.h>

#include <algorithm>
#include <barrier>
#include <cstdint>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "core/step_clock.hpp"

namespace nsf {
namespace {

StepFacts facts(std::int64_t length) {
    StepFacts made;
    made.length = length;
    return made;
}

TEST(StepClock, EveryPassIsAStep) {
    StepClock clock(2);
    for (std::uint32_t number = 0; number < 5; ++number) {
        EXPECT_EQ(clock.begin(facts(number + 1)), number);
        const Step& step = clock.fire(0);
        EXPECT_EQ(step.number, number);
        EXPECT_EQ(step.prompt, 0U);
        EXPECT_EQ(step.state, Step::State::inside_root);
        EXPECT_EQ(step.facts.length, number + 1);
        clock.end();
    }
    EXPECT_EQ(clock.steps(), 5U);
}

TEST(StepClock, CallsAreCountedForEachTapAndStep) {
    StepClock clock(2);
    for (int pass = 0; pass < 3; ++pass) {
        clock.begin({});
        EXPECT_EQ(clock.fire(0).calls, (std::vector<std::uint32_t>{1, 0}));
        EXPECT_EQ(clock.fire(1).calls, (std::vector<std::uint32_t>{1, 1}));
        EXPECT_EQ(clock.fire(0).calls, (std::vector<std::uint32_t>{2, 1}));
        clock.end();
    }
}

TEST(StepClock, InnerPassesBelongToTheOuterOne) {
    StepClock clock(1);
    EXPECT_EQ(clock.begin(facts(7)), 0U);
    EXPECT_EQ(clock.begin(facts(1)), 0U);
    EXPECT_EQ(clock.fire(0).facts.length, 7);
    clock.end();
    EXPECT_EQ(clock.fire(0).number, 0U);
    EXPECT_EQ(clock.fire(0).calls[0], 3U);
    clock.end();
    EXPECT_EQ(clock.begin({}), 1U);
    EXPECT_EQ(clock.steps(), 2U);
}

TEST(StepClock, AnEndWithoutABeginChangesNothing) {
    StepClock clock(1);
    clock.end();
    clock.begin({});
    clock.end();
    clock.end();
    EXPECT_EQ(clock.begin({}), 1U);
    EXPECT_EQ(clock.fire(0).number, 1U);
}

TEST(StepClock, AModuleOutsideAnyPassHasAStepOfItsOwn) {
    StepClock clock(2);
    EXPECT_FALSE(clock.in_pass());
    const Step& step = clock.fire(0);
    EXPECT_EQ(step.state, Step::State::outside_root);
    EXPECT_EQ(step.number, 0U);
    EXPECT_FALSE(step.facts.known());
    clock.fire(1);
    EXPECT_EQ(clock.steps(), 1U);
    EXPECT_FALSE(clock.in_pass());
    EXPECT_EQ(clock.begin(facts(4)), 1U);
    EXPECT_TRUE(clock.in_pass());
    EXPECT_EQ(clock.fire(0).calls[0], 1U);
    EXPECT_EQ(clock.fire(0).facts.length, 4);
    clock.end();
    EXPECT_FALSE(clock.in_pass());
    EXPECT_EQ(clock.begin({}), 2U);
}

// The root may be called with what tells nothing; the inner model then gets the token ids.
TEST(StepClock, AnInnerPassTellsWhatTheOuterOneDidNotKnow) {
    StepClock clock(1);
    clock.begin({});
    EXPECT_FALSE(clock.fire(0).facts.known());
    clock.begin(facts(7));
    clock.begin(facts(3));
    EXPECT_EQ(clock.fire(0).facts.length, 7);
    clock.end();
    clock.end();
    EXPECT_EQ(clock.fire(0).facts.length, 7);
    EXPECT_TRUE(clock.in_pass());
    clock.end();
    EXPECT_EQ(clock.steps(), 1U);
}

TEST(StepClock, ASecondCallOutsideTheRootIsAnotherStep) {
    StepClock clock(2);
    EXPECT_EQ(clock.fire(0).number, 0U);
    EXPECT_EQ(clock.fire(1).number, 0U);
    EXPECT_EQ(clock.fire(0).number, 1U);
    EXPECT_EQ(clock.fire(0).number, 2U);
    EXPECT_EQ(clock.fire(1).number, 2U);
    EXPECT_EQ(clock.fire(0).calls, (std::vector<std::uint32_t>{1, 0}));
    EXPECT_EQ(clock.steps(), 4U);
}

TEST(StepClock, PromptsCountTheirStepsFromZero) {
    StepClock clock(1);
    clock.next_prompt();  // nothing ran yet: still the first
    EXPECT_EQ(clock.prompt(), 0U);
    for (int i = 0; i < 3; ++i) {
        clock.begin({});
        clock.end();
    }
    clock.next_prompt();
    clock.next_prompt();  // nothing ran under this one
    EXPECT_EQ(clock.prompt(), 1U);
    EXPECT_EQ(clock.begin({}), 0U);
    EXPECT_EQ(clock.fire(0).prompt, 1U);
    clock.end();
    EXPECT_EQ(clock.steps(), 4U);  // over all prompts
}

TEST(StepClock, AStepOutsideTheRootEndsWithItsPrompt) {
    StepClock clock(1);
    clock.fire(0);
    clock.next_prompt();
    EXPECT_EQ(clock.begin({}), 0U);
    const Step& step = clock.fire(0);
    EXPECT_EQ(step.prompt, 1U);
    EXPECT_EQ(step.calls[0], 1U);
}

TEST(StepClock, TheEncoderRunsBeforeTheFirstPassOfItsDecoder) {
    StepClock clock(2);
    clock.begin_encoder(facts(9));
    const Step& step = clock.fire(0);
    EXPECT_EQ(step.number, 0U);
    EXPECT_EQ(step.encoder_facts.length, 9);
    EXPECT_EQ(step.facts.length, 0);
    EXPECT_EQ(clock.begin(facts(1)), 0U);
    EXPECT_EQ(clock.fire(1).facts.length, 1);
    EXPECT_EQ(clock.fire(1).encoder_facts.length, 9);
    clock.end();
    EXPECT_EQ(clock.begin(facts(1)), 1U);
    EXPECT_EQ(clock.fire(1).encoder_facts.length, 0);  // it did not run in this pass
    clock.end();
}

TEST(StepClock, TheEncoderWithinAPass) {
    StepClock clock(1);
    clock.begin(facts(1));
    clock.begin_encoder(facts(9));
    EXPECT_EQ(clock.fire(0).encoder_facts.length, 9);
    EXPECT_EQ(clock.fire(0).facts.length, 1);
    clock.begin_encoder(facts(8));  // again, in the same pass
    EXPECT_EQ(clock.fire(0).encoder_facts.length, 8);
    EXPECT_EQ(clock.fire(0).number, 0U);
    clock.end();
    EXPECT_EQ(clock.steps(), 1U);
}

TEST(StepClock, TheEncoderTwiceOutsideTheRootIsTwoSteps) {
    StepClock clock(1);
    clock.begin_encoder(facts(9));
    EXPECT_EQ(clock.fire(0).number, 0U);
    clock.begin_encoder(facts(8));
    const Step& step = clock.fire(0);
    EXPECT_EQ(step.number, 1U);
    EXPECT_EQ(step.encoder_facts.length, 8);
    // An embedding that both share may fire before the encoder does.
    StepClock shared(2);
    shared.fire(0);
    shared.begin_encoder(facts(7));
    EXPECT_EQ(shared.fire(1).number, 0U);
    EXPECT_EQ(shared.steps(), 1U);
}

TEST(StepClock, ClocksOfNestedCapturesDoNotMix) {
    StepClock outer(1);
    outer.begin(facts(5));
    {
        StepClock inner(1);
        inner.begin(facts(6));
        EXPECT_EQ(inner.fire(0).facts.length, 6);
        EXPECT_EQ(outer.fire(0).facts.length, 5);
        inner.end();
        EXPECT_EQ(inner.begin({}), 1U);
    }
    EXPECT_EQ(outer.fire(0).calls[0], 2U);
    EXPECT_EQ(outer.fire(0).number, 0U);
}

// However many captures a thread has seen meanwhile, the one in use is not forgotten within its pass.
TEST(StepClock, AClockInUseOutlastsManyOthers) {
    StepClock outer(1);
    EXPECT_EQ(outer.begin(facts(5)), 0U);
    for (int i = 0; i < 300; ++i) {
        StepClock inner(1);
        inner.begin({});
        inner.end();
        EXPECT_EQ(outer.fire(0).facts.length, 5);
    }
    EXPECT_EQ(outer.fire(0).calls[0], 301U);
    EXPECT_EQ(outer.steps(), 1U);
}

// A thread keeps pointers to the steps of the clocks it has met: those of clocks that are gone must not be
// followed, however many there were (Address Sanitizer).
TEST(StepClock, ManyClocksOneAfterTheOther) {
    StepClock lasting(1);
    for (std::uint32_t i = 0; i < 300; ++i) {
        auto clock = std::make_unique<StepClock>(1 + i % 3);
        EXPECT_EQ(clock->begin({}), 0U);
        EXPECT_EQ(clock->fire(i % 3).calls.size(), 1 + i % 3);
        clock->end();
        EXPECT_EQ(lasting.begin(facts(i)), i);
        EXPECT_EQ(lasting.fire(0).facts.length, i);
        lasting.end();
    }
}

// Every thread has its own pass; numbers are given out once.
TEST(StepClock, ThreadsRunPassesAtTheSameTime) {
    constexpr int threads = 4;
    constexpr int passes = 200;
    StepClock clock(2);
    std::barrier together(threads);
    std::vector<std::vector<std::uint32_t>> numbers(threads);
    std::vector<int> wrong(threads);
    std::vector<std::thread> running;
    for (int i = 0; i < threads; ++i) {
        running.emplace_back([&, i] {
            together.arrive_and_wait();
            for (int pass = 0; pass < passes; ++pass) {
                const auto mine = static_cast<std::size_t>(i);
                const std::uint32_t number = clock.begin(facts(i));
                numbers[mine].push_back(number);
                const Step& step = clock.fire(0);
                clock.fire(1);
                if (step.number != number || step.facts.length != i || step.calls[1] != 1) ++wrong[mine];
                clock.end();
            }
        });
    }
    for (std::thread& thread : running) thread.join();
    std::set<std::uint32_t> seen;
    for (const auto& each : numbers) {
        EXPECT_TRUE(std::is_sorted(each.begin(), each.end()));
        seen.insert(each.begin(), each.end());
    }
    EXPECT_EQ(wrong, std::vector<int>(threads));
    EXPECT_EQ(seen.size(), std::size_t{threads} * passes);
    EXPECT_EQ(*seen.rbegin(), std::uint32_t{threads} * passes - 1);
    EXPECT_EQ(clock.steps(), std::uint64_t{threads} * passes);
}

}  // namespace
}  // namespace nsf
