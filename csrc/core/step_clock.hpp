// Which forward pass a tap is in. Every thread has a pass of its own, so that several may run at once.
//
// Contract
//   begin() and end() bracket a forward pass of the root module, or of an inner model that is called
//   directly, on the calling thread; they nest (an inner pass belongs to the outer one). fire() is called by
//   taps on the thread that runs the module. A module that runs outside any pass opens a step of its own,
//   which closes when a tap fires a second time in it, or when a pass begins: unless what ran was the encoder
//   (generate() of T5 calls it on its own), whose step the pass goes on with. The encoder reads another
//   sequence than the root: begin_encoder() tells its facts. Step numbers are given out under a lock, in the
//   order of begin(), and start again at 0 with next_prompt().
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "core/step_notes.hpp"

namespace nsf {

// What is known of a pass before it runs. 0 stands for unknown.
struct StepFacts {
    bool decode = false;      // one new token a row on top of a cache
    std::int64_t offset = 0;  // tokens in the cache; -1: there is a cache, and nobody knows how many
    std::int64_t batch = 0;
    std::int64_t length = 0;         // tokens that this pass reads, in each row
    std::vector<std::uint8_t> mask;  // batch x length, 1 = a real token; empty where all are
    std::int64_t logits_kept = 0;    // logits are computed for the last so many positions only; 0: for all
    bool guessed = false;            // from the first tensor among the inputs: an inner pass knows better

    bool known() const { return length > 0; }
};

struct Step {
    enum class State : std::uint8_t { none, outside_root, inside_root };

    State state = State::none;
    std::uint32_t depth = 0;
    std::uint32_t prompt = 0;
    std::uint32_t number = 0;
    StepFacts facts;
    StepFacts encoder_facts;
    StepNotes notes;  // of these facts
    bool encoder_ran = false;
    std::vector<std::uint32_t> calls;  // for each tap, how often it has fired in this step
};

class StepClock {
  public:
    explicit StepClock(std::size_t taps, std::uint32_t first_prompt = 0);
    StepClock(const StepClock&) = delete;
    StepClock& operator=(const StepClock&) = delete;

    // Returns the number of the step. An inner pass tells its facts where the outer one knew none.
    // continues_encoder: the pass goes on with what the encoder has computed on its own just before.
    std::uint32_t begin(StepFacts facts, bool continues_encoder = true);
    // Whether that was the outermost pass: the step is over.
    bool end();
    void begin_encoder(StepFacts facts);
    void next_prompt();

    // Whether the calling thread is between begin() and end().
    bool in_pass() { return mine().state == Step::State::inside_root; }
    // The calling thread's step, with calls[tap] counting this call.
    Step& fire(std::size_t tap);

    std::uint32_t prompt() const;
    std::uint64_t steps() const;  // given out so far, over all prompts

  private:
    Step& mine();
    void open(Step& step, Step::State state);

    const std::uint64_t id_;  // never used twice, so that a thread's cached pointer cannot meet a later clock
    const std::size_t taps_;
    mutable std::mutex mutex_;
    std::uint32_t prompt_ = 0;
    std::uint32_t next_ = 0;
    std::uint64_t steps_ = 0;
    std::vector<std::unique_ptr<Step>> threads_;
};

}  // namespace nsf
