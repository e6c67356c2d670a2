// The taps that fired while a CUDA graph was captured, and what each replay of the graph stores for them.
//
// A graph computes nothing while it is captured, and calls no tap when it is replayed. So each tap makes the graph itself
// write the tensor, cast as it will be stored, into a slot; after a replay was started, the slots are stored like any
// tensor on the replay's stream, with the facts of the step that the replay is. The next replay writes the slots again
// as soon as they have been copied into the staging ring: it never waits for the way to the host.
//
// Contract
//   add() is called by the thread that captures the graph, until the capture ends; before_replay(), store() and
//   after_replay() then by one thread at a time, in this order for each replay. The engine must live as long as they are
//   called; the slots live as long as this, which must outlive the graph: replays write them even when nobody reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "core/device.hpp"
#include "core/engine.hpp"
#include "core/step_clock.hpp"
#include "core/tap_rule.hpp"
#include "core/tensor_view.hpp"

namespace nsf {

class GraphRecording {
  public:
    explicit GraphRecording(Engine& engine) : engine_(engine) {}

    // A tap fired. Throws std::invalid_argument for a tensor that replays of this graph do not compute, and for what no
    // tap can take.
    void add(std::shared_ptr<const TapPlace> tap, const TensorView& view);

    // How often a tap has fired.
    std::size_t calls() const { return calls_.size(); }
    const TapPlace& tap(std::size_t call) const { return *calls_[call].tap; }

    void before_replay(void* stream);
    // What the tap of this call stores in this step; throws as TapRule::wants() and Engine::submit() do. Returns the bytes
    // that the model computed.
    std::uint64_t store(std::size_t call, const Step& step, void* stream);
    void after_replay(void* stream);

    // For whoever keeps them once nobody stores any more. Null where no tap has fired.
    std::unique_ptr<GraphSlots> take_slots() { return std::move(slots_); }

  private:
    struct Call {
        std::shared_ptr<const TapPlace> tap;
        DType computed = DType::u8;
        std::vector<TensorView> slots;  // by dtype, in the order in which the tap's rules first ask for it
    };

    // What a rule finds in a slot: the dtype that it stores, but int8 is made of a slot in the tensor's own dtype.
    static DType slot_dtype(const TapRule& rule, DType computed) {
        const DType stored = rule.stored_as(computed);
        return stored == DType::i8 ? computed : stored;
    }

    Engine& engine_;
    std::unique_ptr<GraphSlots> slots_;  // null: no tap has fired
    std::vector<Call> calls_;
};

}  // namespace nsf
