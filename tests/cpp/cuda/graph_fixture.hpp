// A model whose forward pass is captured into a CUDA graph, with taps, and replayed; on the stub driver.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "core/graph_recording.hpp"
#include "core/step_clock.hpp"
#include "cuda_fixture.hpp"

namespace nsf::testing_support {

inline TapRule rule_of(std::optional<DType> dtype = std::nullopt) {
    TapRule rule;
    rule.dtype = dtype;
    return rule;
}

// One tensor of the pass: computed anew in every replay, in the memory that all the others of the pass use too.
struct GraphedTensor {
    DType dtype = DType::f32;
    Shape shape;
    std::vector<TapRule> rules;
    bool strided = false;
};

class GraphedModel {
  public:
    // `most_replays` contents of each tensor are made up here. Each rule gets a stream of its own, from `first_stream` on.
    GraphedModel(Gpu& gpu, CudaCapture& capture, std::vector<GraphedTensor> tensors, std::size_t most_replays,
                 std::uint32_t first_stream = 0)
        : recording(std::make_shared<GraphRecording>(*capture.engine)),
          clock(tensors.size()),
          gpu_(gpu),
          capture_(capture),
          stream_(gpu.new_stream()),
          streams_(first_stream) {
        std::size_t largest = 1;
        for (std::size_t index = 0; index < tensors.size(); ++index) {
            const GraphedTensor& tensor = tensors[index];
            auto tap = std::make_shared<TapPlace>();
            tap->index = index;
            tap->rules = tensor.rules;
            for (TapRule& rule : tap->rules) rule.stream = streams_++;
            tap->description = "tensor " + std::to_string(index);
            taps_.push_back(std::move(tap));
            contents_.emplace_back();
            const OwnedTensor like = tensor.strided
                                         ? strided_tensor(capture.random, tensor.dtype, tensor.shape)
                                         : contiguous_tensor(capture.random, tensor.dtype, tensor.shape);
            for (std::size_t replay = 0; replay < most_replays; ++replay) {
                OwnedTensor each;
                each.memory.resize(like.memory.size());
                each.view = like.view;
                fill_elements(capture.random, tensor.dtype, each.memory.data(),
                              each.memory.size() / item_size(tensor.dtype));
                each.view.data = each.memory.data() + (like.view.data - like.memory.data());
                contents_.back().push_back(std::move(each));
            }
            largest = std::max(largest, like.memory.size());
        }
        memory_ = gpu.allocate(largest);
    }

    // The graph computes in this object.
    ~GraphedModel() {
        cuda::Context popped = nullptr;
        // Twice each: the first may be the call that the test lets fail.
        const bool entered = gpu_.driver().context_push(gpu_.context()) == cuda::success ||
                             gpu_.driver().context_push(gpu_.context()) == cuda::success;
        for (const cuda::Stream stream : launched_on_) {
            if (gpu_.driver().stream_synchronize(stream) == cuda::success) continue;
            static_cast<void>(gpu_.driver().stream_synchronize(stream));
        }
        if (entered) static_cast<void>(gpu_.driver().context_pop(&popped));
    }
    GraphedModel(const GraphedModel&) = delete;
    GraphedModel& operator=(const GraphedModel&) = delete;

    // What torch.cuda.graph() does around the model's forward.
    void capture_graph() {
        stub::set_capturing(stream_, true);
        gpu_.run(stream_, [this] { ++replays_done_; });
        for (std::size_t index = 0; index < taps_.size(); ++index) {
            gpu_.run(stream_, [this, index] {
                const std::vector<std::byte>& bytes = contents_[index][replays_done_ - 1].memory;
                if (!bytes.empty()) std::memcpy(memory_, bytes.data(), bytes.size());
            });
            recording->add(taps_[index], view_of(index, 0));
        }
        stub::set_capturing(stream_, false);
        graph_ = stub::take_graph();
    }

    // A forward pass with these facts; expects what a plain capture of the same tensors stores.
    void replay(cuda::Stream stream, const StepFacts& facts = {}) {
        Step step;
        step.number = clock.begin(facts);
        step.prompt = clock.prompt();
        step.facts = facts;
        step.calls.assign(taps_.size(), 1);
        recording->before_replay(stream);
        launch(stream);
        const std::size_t replay = replays_++;
        try {
            recording->store(0, recording->calls(), clock, stream,
                             [&](const TapPlace& tap) { expect(tap, step, replay); });
        } catch (...) {
            clock.end();
            throw;
        }
        if (clock.end()) capture_.engine->end_step();
    }
    void launch(cuda::Stream stream) {
        const cuda::CurrentContext current(gpu_.driver(), gpu_.context());
        launched_on_.push_back(stream);
        gpu_.driver().check(stub::launch_graph(graph_, stream), "launch the test's graph");
    }

    TensorView view_of(std::size_t index, std::size_t replay) const {
        const OwnedTensor& tensor = contents_[index][replay];
        TensorView view = tensor.view;
        view.data = memory_ + (tensor.view.data - tensor.memory.data());
        view.device = 0;
        view.stream = stream_;
        return view;
    }
    cuda::Stream stream() const { return stream_; }

    std::shared_ptr<GraphRecording> recording;
    StepClock clock;

  private:
    void expect(const TapPlace& tap, const Step& step, std::size_t replay) {
        for (const TapRule& rule : tap.rules) {
            const StepFacts& facts = tap.facts_of(step);
            if (rule.positions.kind == PositionSpec::Kind::list && !facts.known()) continue;  // is refused
            if (!rule.wants(facts, step.number)) continue;
            const OwnedTensor& tensor = contents_[tap.index][replay];
            const Kept kept = keep_positions(rule.positions, facts, tensor.view);
            if (kept.nothing) continue;
            const Origin origin{rule.stream, step.prompt, step.number, step.calls[tap.index] - 1};
            expect_stored(capture_.expected, capture_.engine->streams()[rule.stream], origin, kept,
                          rule.stored_as(tensor.view.dtype));
        }
    }

    Gpu& gpu_;
    CudaCapture& capture_;
    const cuda::Stream stream_;
    std::uint32_t streams_;  // given to rules so far
    std::vector<std::shared_ptr<TapPlace>> taps_;
    std::vector<std::vector<OwnedTensor>> contents_;  // by tensor and replay
    std::vector<cuda::Stream> launched_on_;
    std::byte* memory_ = nullptr;
    std::size_t graph_ = 0;
    std::size_t replays_ = 0;
    std::atomic<std::size_t> replays_done_{0};  // by the graph itself
};

}  // namespace nsf::testing_support
