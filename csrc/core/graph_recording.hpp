// The taps that fired while a CUDA graph was captured, and what each replay of the graph stores for them.
//
// A graph computes nothing while it is captured, and calls no tap when it is replayed. So each tap makes the graph itself
// write the tensor, cast as it will be stored, into a slot; after a replay was started, the slots are stored like any
// tensor on the replay's stream, with the facts of the step that the replay is. The next replay writes the slots again
// as soon as they have been copied into the staging ring: it never waits for the way to the host.
//
// Contract
//   Every function may be called from any thread; they take turns. add() belongs to the capture of the graph. For each
//   replay: before_replay(), the launch, store() for all calls, in one piece or in several, all on one stream. close() may
//   come at any time, and must before the engine goes: it waits for a store() under way, and what is called after it throws
//   EngineError. The slots live as long as this, which must outlive the graph: replays write them even when nobody reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "core/device.hpp"
#include "core/engine.hpp"
#include "core/step_clock.hpp"
#include "core/tap_rule.hpp"
#include "core/tensor_view.hpp"

namespace nsf {

class GraphRecording {
  public:
    explicit GraphRecording(Engine& engine) : engine_(&engine) {}

    // A tap fired. Throws std::invalid_argument for a tensor that replays of this graph do not compute, and for what no
    // tap can take.
    void add(std::shared_ptr<const TapPlace> tap, const TensorView& view);
    // How often a tap has fired.
    std::size_t calls() const;

    void before_replay(void* stream);
    // What the taps of the calls first .. last - 1 store in the step that the calling thread is in. `fired` hears of each
    // before it stores anything. Nothing of the slots is left to be read when this returns or throws. Throws EngineError.
    void store(std::size_t first, std::size_t last, StepClock& clock, void* stream,
               const std::function<void(const TapPlace&)>& fired);

    void close();

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
    Engine& engine() const;
    void store_call(const Call& call, const Step& step, void* stream);

    mutable std::mutex mutex_;           // guards all that follows
    Engine* engine_;                     // null once closed
    std::unique_ptr<GraphSlots> slots_;  // null: no tap has fired
    std::vector<Call> calls_;
};

}  // namespace nsf
