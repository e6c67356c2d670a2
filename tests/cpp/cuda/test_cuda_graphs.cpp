// Captures from CUDA graphs: every replay stores what it has computed, as a plain pass would have.
#include "graph_fixture.hpp"
#include "search_stride.hpp"

namespace nsf::testing_support {
namespace {

using stub::Kind;

PositionSpec last_position() {
    PositionSpec spec;
    spec.kind = PositionSpec::Kind::last;
    return spec;
}

TEST(CudaGraphs, EveryReplayStoresWhatItComputed) {
    Gpu gpu;
    CudaCapture capture(gpu, {.blocks = 16, .staging_blocks = 64, .streams = 16});
    TapRule last = rule_of();
    last.positions = last_position();
    TapRule last_codes = rule_of(DType::i8);
    last_codes.positions = last_position();
    GraphedModel model(gpu, capture,
                       {{DType::f32, {2, 1, 64}, {rule_of()}},
                        {DType::f32, {2, 5, 63}, {rule_of(DType::bf16), rule_of(DType::f8_e4m3fn), last}},
                        {DType::bf16, {2, 5, 65}, {rule_of(DType::i8), last_codes, rule_of()}},
                        {DType::i64, {2, 3}, {rule_of(DType::bf16)}},
                        {DType::f32, {3, 4, 5}, {rule_of(), rule_of(DType::f16)}, true},
                        {DType::f32, {2, 0, 5}, {rule_of(), rule_of(DType::bf16)}},
                        {DType::f16, {}, {rule_of()}}},
                       9);
    model.capture_graph();
    EXPECT_EQ(capture.engine->stats().records, 0U);
    const cuda::Stream stream = gpu.new_stream();
    for (int i = 0; i < 9; ++i) model.replay(stream);
    capture.close_and_compare();
}

// The step's facts are those of the replay, not of the capture.
TEST(CudaGraphs, AReplayIsAStepOfItsOwn) {
    Gpu gpu;
    CudaCapture capture(gpu, {.blocks = 16, .staging_blocks = 4, .streams = 8});
    TapRule decode = rule_of();
    decode.phase = TapRule::Phase::decode;
    TapRule second = rule_of();
    second.every = 2;
    TapRule last = rule_of();
    last.positions = last_position();
    TapRule listed = rule_of();
    listed.positions.kind = PositionSpec::Kind::list;
    listed.positions.list = {7, -1};
    GraphedModel model(gpu, capture, {{DType::f32, {2, 3, 8}, {decode, second, last, listed}}}, 5);
    model.capture_graph();
    const cuda::Stream stream = gpu.new_stream();
    StepFacts facts;
    facts.batch = 2;
    facts.length = 3;
    for (const std::int64_t offset : {0, 5, 6, 7, 100}) {
        facts.offset = offset;
        facts.decode = offset == 6;
        facts.mask = offset == 5 ? std::vector<std::uint8_t>{1, 1, 0, 1, 0, 0} : std::vector<std::uint8_t>{};
        model.replay(stream, facts);
    }
    model.clock.next_prompt();
    capture.close_and_compare();
}

// All slots of a dtype lie side by side: the step leaves them by one copy on the device and one to the host.
TEST(CudaGraphs, OneCopyToTheHostAReplay) {
    Gpu gpu;
    constexpr std::size_t taps = 96;
    constexpr int replays = 2;  // more, and a shard is full and ends within one
    CudaCapture capture(gpu, {.blocks = 4, .block_bytes = 1 << 20, .staging_blocks = 4, .streams = taps});
    GraphedModel model(
        gpu, capture,
        std::vector<GraphedTensor>(taps, GraphedTensor{DType::f32, {1, 1, 32}, {rule_of(DType::bf16)}}),
        replays);
    model.capture_graph();
    const cuda::Stream stream = gpu.new_stream();
    const std::uint64_t allocations = stub::counters().allocations;
    for (int i = 0; i < replays; ++i) model.replay(stream);
    gpu.synchronize(stream);
    EXPECT_EQ(stub::counters().allocations, allocations);
    const DeviceStats stats = capture.engine->device_stats().at(0);
    EXPECT_EQ(stats.dtoh_copies, static_cast<std::uint64_t>(replays));
    EXPECT_EQ(stats.host_waits, 0U);
    EXPECT_GE(stats.peak_slot_bytes, taps * 64);
    EXPECT_EQ(stub::executed_count(Kind::dtod), static_cast<std::uint64_t>(replays));
    capture.close_and_compare();
}

TEST(CudaGraphs, TensorsLargerThanEveryRingAndChunk) {
    Gpu gpu;
    CudaCapture capture(gpu, {.blocks = 3, .staging_blocks = 1, .streams = 4});
    GraphedModel model(gpu, capture,
                       {{DType::f32, {2, 40, 63}, {rule_of(), rule_of(DType::i8)}},
                        {DType::f32, {2, 900}, {rule_of()}},
                        {DType::u8, {5}, {rule_of()}}},
                       4);
    EXPECT_NE(error_of([&] { model.capture_graph(); }).find("raise it"), std::string::npos);
    stub::take_graph();
    CudaCapture large(gpu, {.blocks = 3, .block_bytes = 4096, .staging_blocks = 16, .streams = 4});
    GraphedModel fits(gpu, large,
                      {{DType::f32, {2, 40, 63}, {rule_of(), rule_of(DType::i8)}},
                       {DType::f32, {2, 900}, {rule_of()}},
                       {DType::u8, {5}, {rule_of()}}},
                      4);
    fits.capture_graph();
    const cuda::Stream stream = gpu.new_stream();
    for (int i = 0; i < 4; ++i) fits.replay(stream);
    large.close_and_compare();
}

// What has left for the host does not hold the next replay back, however long the way takes.
TEST(CudaGraphs, AReplayDoesNotWaitForTheHost) {
    Gpu gpu;
    CudaCapture capture(gpu, {.blocks = 8, .staging_blocks = 8, .streams = 2});
    GraphedModel model(gpu, capture, {{DType::f32, {1000}, {rule_of(DType::bf16)}}}, 3);
    model.capture_graph();
    const cuda::Stream stream = gpu.new_stream();
    stub::hold(Kind::dtoh);
    for (int i = 0; i < 3; ++i) model.replay(stream);
    gpu.synchronize(stream);
    stub::release();
    capture.close_and_compare();
}

TEST(CudaGraphs, TwoGraphsInTurnAndPlainPassesBetween) {
    Gpu gpu;
    CudaCapture capture(gpu, {.blocks = 8, .staging_blocks = 4, .streams = 6});
    GraphedModel model(gpu, capture,
                       {{DType::f32, {500}, {rule_of(DType::bf16)}}, {DType::f32, {70}, {rule_of()}}}, 6, 1);
    model.capture_graph();
    CudaCapture beside(gpu, {.streams = 2});
    GraphedModel other(gpu, beside, {{DType::bf16, {900}, {rule_of()}}}, 6);
    other.capture_graph();
    const cuda::Stream streams[2] = {gpu.new_stream(), gpu.new_stream()};
    for (int i = 0; i < 6; ++i) {
        model.replay(streams[i % 2]);
        other.replay(streams[1 - i % 2]);
        capture.submit(capture.tensor(DType::f32, {300}), streams[i % 2], DType::bf16);
    }
    capture.close_and_compare();
    beside.close_and_compare();
}

// What the taps before it have stored is of this replay, though the next one writes the slots again.
TEST(CudaGraphs, AReplayThatEndsHalfWay) {
    Gpu gpu;
    CudaCapture capture(gpu, {.blocks = 8, .staging_blocks = 16, .streams = 4});
    TapRule listed = rule_of();
    listed.positions.kind = PositionSpec::Kind::list;
    listed.positions.list = {0};
    GraphedModel model(
        gpu, capture,
        {{DType::f32, {2, 1, 100}, {rule_of(DType::bf16)}}, {DType::f32, {2, 1, 100}, {listed}}}, 4);
    model.capture_graph();
    const cuda::Stream stream = gpu.new_stream();
    const std::string error = error_of([&] { model.replay(stream); });
    EXPECT_NE(error.find("tensor 1"), std::string::npos) << error;
    EXPECT_NE(error.find("nothing is known"), std::string::npos) << error;
    StepFacts facts;
    facts.batch = 2;
    facts.length = 1;
    model.replay(gpu.new_stream(), facts);
    EXPECT_NE(error_of([&] { model.replay(stream); }), "");
    model.replay(stream, facts);
    capture.close_and_compare();
}

// The block ends while another thread replays: what it has begun is stored, what comes later is refused.
TEST(CudaGraphs, TheEndOfTheCaptureDuringAReplay) {
    Gpu gpu;
    CudaCapture capture(gpu, {.blocks = 2, .staging_blocks = 16, .streams = 2});
    GraphedModel model(gpu, capture, {{DType::f32, {6, 1000}, {rule_of()}}}, 3);
    model.capture_graph();
    const cuda::Stream stream = gpu.new_stream();
    stub::hold(Kind::dtoh);
    std::string error;
    std::jthread replays([&] {
        error = error_of([&] {
            for (int i = 0; i < 3; ++i) model.replay(stream);
        });
    });
    stub::wait_until_held(Kind::dtoh);  // the ring is full, and the replay waits in the middle of its record
    const std::jthread later = release_after(std::chrono::milliseconds(50));
    model.recording->close();
    replays.join();
    // Whether another replay came first is the threads' luck.
    EXPECT_TRUE(error.empty() || error.find("has ended") != std::string::npos) << error;
    capture.close_and_compare();
}

TEST(CudaGraphs, AGraphOutlivesItsCapture) {
    Gpu gpu;
    auto capture = std::make_unique<CudaCapture>(gpu);
    GraphedModel model(gpu, *capture, {{DType::f32, {100}, {rule_of(DType::bf16)}}}, 3);
    model.capture_graph();
    const cuda::Stream stream = gpu.new_stream();
    model.replay(stream);
    capture->close_and_compare();
    const std::string error = error_of([&] { model.recording->before_replay(stream); });
    EXPECT_NE(error.find("closed"), std::string::npos) << error;
    model.recording->close();
    capture.reset();
    model.launch(stream);  // the stub tells of writes to memory that is not there
    gpu.synchronize(stream);
    model.recording.reset();
}

TEST(CudaGraphs, WhatTheGraphDoesNotComputeIsRefused) {
    Gpu gpu(2);
    CudaCapture capture(gpu);
    GraphedModel model(gpu, capture, {{DType::f32, {100}, {rule_of()}}}, 1);
    auto tap = std::make_shared<TapPlace>();
    tap->rules = {rule_of()};
    const auto refusal = [&](const TensorView& view) {
        return error_of([&] { model.recording->add(tap, view); });
    };
    const OwnedTensor on_host = capture.tensor(DType::f32, {4});
    EXPECT_NE(refusal(on_host.view).find("beside the CUDA graph"), std::string::npos);
    EXPECT_NE(refusal(model.view_of(0, 0)).find("beside the CUDA graph"), std::string::npos);
    const cuda::Stream second = gpu.new_stream(1);
    const TensorView elsewhere = gpu.put(on_host, second, 1);
    gpu.synchronize(second, 1);
    stub::set_capturing(second, true);
    model.capture_graph();
    EXPECT_NE(refusal(elsewhere).find("several devices"), std::string::npos);
    stub::set_capturing(second, false);
    EXPECT_EQ(model.recording->calls(), 1U);  // of two: the second had another device
    model.replay(gpu.new_stream());
    capture.close_and_compare();
}

// A capture that fails somewhere on the way stores whole records of some replays, and says that it failed.
TEST(CudaGraphs, AFailureOfAnyCallIsSaidOrDoesNotMatter) {
    constexpr int refusal = 719;
    const auto scenario = [&](Gpu& gpu, std::uint64_t failing) {
        CudaCapture capture(gpu, {.blocks = 4, .staging_blocks = 8, .streams = 4});
        capture.engine->open_device(0, {});
        const std::uint64_t before = stub::call_count();
        if (failing > 0) stub::fail_call(failing, refusal);
        std::string error = error_of([&] {
            GraphedModel model(gpu, capture,
                               {{DType::f32, {300}, {rule_of(DType::bf16), rule_of(DType::i8)}},
                                {DType::f32, {500}, {rule_of(DType::bf16)}}},
                               3);
            model.capture_graph();
            const cuda::Stream stream = gpu.new_stream();
            for (int i = 0; i < 3; ++i) model.replay(stream);
        });
        const std::string at_close = error_of([&] { capture.engine->close(); });
        if (error.empty()) error = at_close;
        const Tensors stored = read_records(*capture.engine);
        for (const auto& [key, tensor] : stored) {
            const auto found = capture.expected.find(key);
            // A replay that failed after this tap: what the tap stored is whole, but the test has not noted it.
            if (found == capture.expected.end()) continue;
            EXPECT_TRUE(found->second.bytes == tensor.bytes) << key << " is wrong";
        }
        if (error.empty()) {
            EXPECT_GE(stored.size(), capture.expected.size());
        }
        return std::pair{error, stub::call_count() - before};
    };
    std::uint64_t calls = 0;
    {
        Gpu gpu;
        const auto [error, count] = scenario(gpu, 0);
        EXPECT_EQ(error, "");
        calls = count;
    }
    ASSERT_GT(calls, 40U);
    for (std::uint64_t n = 1; n <= calls; n += search_stride) {
        SCOPED_TRACE("call " + std::to_string(n));
        Gpu gpu;
        gpu.forgive_leftovers = true;  // the call that failed may be one that gives something back
        std::string error;
        try {
            error = scenario(gpu, n).first;
        } catch (const std::exception& caught) {
            error = caught.what();  // the test's own call was hit
        }
        if (!error.empty()) {
            EXPECT_NE(error.find("CUDA"), std::string::npos) << error;
        }
    }
}

}  // namespace
}  // namespace nsf::testing_support
