#include "core/step_clock.hpp"

#include <algorithm>
#include <atomic>
#include <utility>

namespace nsf {
namespace {

struct Known {
    std::uint64_t clock;
    Step* step;
};

// The steps of this thread, one for each clock it has met (nested captures have one each). A Step belongs to
// its clock; an entry whose clock is gone is never looked at again, since ids are not reused.
thread_local std::vector<Known> known_steps;

std::atomic<std::uint64_t> next_id{1};

constexpr std::size_t most_known = 64;

}  // namespace

StepClock::StepClock(std::size_t taps, std::uint32_t first_prompt)
    : id_(next_id.fetch_add(1, std::memory_order_relaxed)), taps_(taps), prompt_(first_prompt) {}

Step& StepClock::mine() {
    for (std::size_t i = known_steps.size(); i-- > 0;) {
        if (known_steps[i].clock != id_) continue;
        // The one in use goes to the back: what is evicted below has not been used for longest.
        std::rotate(known_steps.begin() + static_cast<std::ptrdiff_t>(i),
                    known_steps.begin() + static_cast<std::ptrdiff_t>(i) + 1, known_steps.end());
        return *known_steps.back().step;
    }
    const std::lock_guard lock(mutex_);
    threads_.push_back(std::make_unique<Step>());
    Step* step = threads_.back().get();
    step->calls.assign(taps_, 0);
    // Entries of captures long closed would pile up in a thread that lives on; a live one that is dropped
    // here only makes its thread open a new Step, so the bound is far above any nesting.
    if (known_steps.size() >= most_known) known_steps.erase(known_steps.begin());
    known_steps.push_back({id_, step});
    return *step;
}

void StepClock::open(Step& step, Step::State state) {
    {
        const std::lock_guard lock(mutex_);
        step.prompt = prompt_;
        step.number = next_++;
        ++steps_;
    }
    step.state = state;
    std::fill(step.calls.begin(), step.calls.end(), 0U);
    step.facts = StepFacts{};
    step.encoder_facts = StepFacts{};
    step.notes.clear();
    step.encoder_ran = false;
}

std::uint32_t StepClock::begin(StepFacts facts, bool continues_encoder) {
    Step& step = mine();
    if (step.depth++ > 0) {
        if (facts.known() && (step.facts.guessed || !step.facts.known())) {
            step.facts = std::move(facts);
            step.notes.clear();
        }
        return step.number;
    }
    const bool goes_on = step.state == Step::State::outside_root && step.encoder_ran && continues_encoder;
    if (!goes_on) open(step, Step::State::inside_root);
    step.state = Step::State::inside_root;
    step.facts = std::move(facts);
    step.notes.clear();
    return step.number;
}

bool StepClock::end() {
    Step& step = mine();
    if (step.depth == 0 || --step.depth > 0) return false;
    step.state = Step::State::none;
    return true;
}

void StepClock::begin_encoder(StepFacts facts) {
    Step& step = mine();
    const bool again = step.state == Step::State::outside_root && step.encoder_ran;
    if (step.state == Step::State::none || again) open(step, Step::State::outside_root);
    step.encoder_facts = std::move(facts);
    step.notes.clear();
    step.encoder_ran = true;
}

void StepClock::next_prompt() {
    mine().state = Step::State::none;
    const std::lock_guard lock(mutex_);
    if (next_ == 0) return;  // nothing ran under this prompt yet
    ++prompt_;
    next_ = 0;
}

Step& StepClock::fire(std::size_t tap) {
    Step& step = mine();
    const bool again = step.state == Step::State::outside_root && step.calls[tap] > 0;
    if (step.state == Step::State::none || again) open(step, Step::State::outside_root);
    ++step.calls[tap];
    return step;
}

std::uint32_t StepClock::prompt() const {
    const std::lock_guard lock(mutex_);
    return prompt_;
}

std::uint64_t StepClock::steps() const {
    const std::lock_guard lock(mutex_);
    return steps_;
}

}  // namespace nsf
