// Captures from devices, end to end: what is stored is what the tensor was when its tap fired.
#include "cuda_fixture.hpp"

namespace nsf::testing_support {
namespace {

const std::vector<DType> targets{DType::f32,       DType::bf16,    DType::f16,
                                 DType::f8_e4m3fn, DType::f8_e5m2, DType::i8};

TEST(CudaCapture, StoresATensorAsItIs) {
    Gpu gpu;
    CudaCapture capture(gpu);
    capture.submit(capture.tensor(DType::f32, {3, 5}), gpu.new_stream());
    capture.close_and_compare();
}

TEST(CudaCapture, TheLegacyDefaultStreamIsAStreamLikeAnyOther) {
    Gpu gpu;
    CudaCapture capture(gpu);
    capture.submit(capture.tensor(DType::bf16, {7, 64}), nullptr, DType::f8_e5m2);
    capture.close_and_compare();
}

TEST(CudaCapture, EveryDtypeIsCopied) {
    Gpu gpu;
    CudaCapture capture(gpu);
    const cuda::Stream stream = gpu.new_stream();
    for (std::size_t i = 0; i < dtype_count; ++i) {
        capture.submit(capture.tensor(static_cast<DType>(i), {2, 3, 5}), stream);
        capture.submit(strided_tensor(capture.random, static_cast<DType>(i), {4, 3, 5}), stream);
    }
    capture.close_and_compare();
}

TEST(CudaCapture, EveryCastAndQuantisation) {
    Gpu gpu;
    CudaCapture capture(gpu, {.blocks = 16, .staging_blocks = 8});
    const cuda::Stream stream = gpu.new_stream();
    for (std::size_t source = 0; source <= static_cast<std::size_t>(DType::f8_e5m2); ++source) {
        for (const DType target : targets) {
            for (const Shape& shape :
                 {Shape{63}, Shape{1, 65}, Shape{3, 1000}, Shape{}, Shape{2, 0}, Shape{0, 4}}) {
                capture.submit(capture.tensor(static_cast<DType>(source), shape), stream, target);
            }
        }
    }
    capture.close_and_compare();
}

TEST(CudaCapture, AnyStridesAndSelections) {
    Gpu gpu;
    CudaCapture capture(gpu, {.blocks = 3, .staging_blocks = 1});
    const cuda::Stream stream = gpu.new_stream();
    for (int round = 0; round < 400; ++round) {
        const std::size_t rank = 1 + pick_below(capture.random, 6);
        const Shape shape = random_shape(capture.random, rank);
        const DType source = pick_below(capture.random, 2) == 0 ? DType::f32 : DType::bf16;
        const DType target = targets[pick_below(capture.random, targets.size())];
        std::optional<Selection> selection;
        const std::size_t axis = rank - 2;
        if (rank >= 2 && shape[axis] > 0 && pick_below(capture.random, 2) == 0) {
            selection.emplace();
            selection->axis = axis;
            selection->rows =
                axis > 0 && pick_below(capture.random, 2) == 0 ? static_cast<std::size_t>(shape[0]) : 1;
            selection->per_row = pick_below(capture.random, 4);
            for (std::size_t i = 0; i < selection->rows * selection->per_row; ++i) {
                selection->indices.push_back(static_cast<std::int64_t>(
                    pick_below(capture.random, static_cast<std::size_t>(shape[axis]))));
            }
        }
        const OwnedTensor tensor = pick_below(capture.random, 3) == 0
                                       ? contiguous_tensor(capture.random, source, shape)
                                       : strided_tensor(capture.random, source, shape);
        capture.submit(tensor, stream, target, selection);
        if (pick_below(capture.random, 8) == 0) capture.engine->end_step();
    }
    capture.close_and_compare();
}

// A record is longer than the staging ring, the host ring, or both together.
TEST(CudaCapture, ATensorLargerThanEitherRingComesOutWhole) {
    for (const std::size_t staging : {1U, 2U, 9U}) {
        for (const DType target : {DType::f32, DType::bf16, DType::i8}) {
            Gpu gpu;
            CudaCapture capture(gpu, {.blocks = 3, .staging_blocks = staging, .in_memory = staging == 2});
            const cuda::Stream stream = gpu.new_stream();
            capture.submit(capture.tensor(DType::f32, {5}), stream, target);
            capture.submit(capture.tensor(DType::f32, {37, 1001}), stream, target);
            capture.submit(strided_tensor(capture.random, DType::f32, {61, 3, 301}), stream, target);
            capture.close_and_compare();
        }
    }
}

TEST(CudaCapture, ALaterChangeInPlaceIsNotSeen) {
    Gpu gpu;
    CudaCapture capture(gpu);
    const cuda::Stream stream = gpu.new_stream();
    const OwnedTensor tensor = capture.tensor(DType::f32, {100});
    for (const DType target : {DType::f32, DType::bf16, DType::i8}) {
        const TensorView view = gpu.put(tensor, stream);
        stub::hold(stub::Kind::all);
        capture.submit_view(tensor, view, target);
        auto* memory = const_cast<std::byte*>(view.data);
        gpu.run(stream, [memory] { std::memset(memory, 0x5A, 400); });
        stub::release();
    }
    capture.close_and_compare();
}

TEST(CudaCapture, OneCopyCarriesAWholeStep) {
    Gpu gpu;
    CudaCapture capture(gpu, {.blocks = 4, .block_bytes = 1 << 20, .staging_blocks = 2, .in_memory = true});
    const cuda::Stream stream = gpu.new_stream();
    for (int step = 0; step < 5; ++step) {
        const std::uint64_t before = stub::call_count("cuMemcpyDtoHAsync_v2");
        for (int hook = 0; hook < 96; ++hook) {
            capture.submit(capture.tensor(DType::f32, {1, 1, 64}), stream, DType::bf16);
        }
        EXPECT_EQ(stub::call_count("cuMemcpyDtoHAsync_v2"), before);
        capture.engine->end_step();
        EXPECT_EQ(stub::call_count("cuMemcpyDtoHAsync_v2"), before + 1);
    }
    capture.close_and_compare();
    EXPECT_EQ(capture.engine->device_stats().at(0).dtoh_copies, 5U);
    EXPECT_EQ(capture.engine->device_stats().at(0).dtoh_bytes, 5U * 96 * 128);
}

TEST(CudaCapture, NothingIsAllocatedOrLockedAfterTheStart) {
    Gpu gpu;
    CudaCapture capture(gpu);
    const cuda::Stream stream = gpu.new_stream();
    capture.engine->open_device(0, {{DType::f32, DType::bf16}, {DType::f32, DType::i8}});
    const std::vector<OwnedTensor> tensors = [&] {
        std::vector<OwnedTensor> made;
        for (int i = 0; i < 50; ++i) made.push_back(capture.tensor(DType::f32, {3, 700}));
        return made;
    }();
    std::vector<TensorView> views;
    for (const OwnedTensor& tensor : tensors) views.push_back(gpu.put(tensor, stream));
    const auto forbidden = [] {
        return stub::call_count("cuMemAlloc_v2") + stub::call_count("cuMemHostRegister_v2") +
               stub::call_count("cuStreamCreate") + stub::call_count("cuEventCreate") +
               stub::call_count("cuStreamSynchronize");
    };
    const std::uint64_t before = forbidden();
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        capture.submit_view(tensors[i], views[i], i % 2 == 0 ? DType::bf16 : DType::i8);
        if (i % 10 == 9) capture.engine->end_step();
    }
    EXPECT_EQ(forbidden(), before);
    capture.close_and_compare();
}

TEST(CudaCapture, SeveralStreamsOfOneDevice) {
    Gpu gpu;
    stub::delay(stub::Kind::all, std::chrono::microseconds(0), std::chrono::microseconds(50));
    CudaCapture capture(gpu, {.blocks = 3, .staging_blocks = 2});
    const std::vector<cuda::Stream> streams{gpu.new_stream(), gpu.new_stream(), nullptr};
    for (int i = 0; i < 120; ++i) {
        capture.submit(capture.tensor(DType::f32, {1 + i % 7, 100}), streams[pick_below(capture.random, 3)],
                       targets[pick_below(capture.random, targets.size())]);
        if (i % 5 == 4) capture.engine->end_step();
    }
    capture.close_and_compare();
}

TEST(CudaCapture, SeveralDevicesAndTheHost) {
    Gpu gpu(3);
    stub::delay(stub::Kind::all, std::chrono::microseconds(0), std::chrono::microseconds(50));
    CudaCapture capture(gpu, {.blocks = 4, .staging_blocks = 2});
    const std::vector<cuda::Stream> streams{gpu.new_stream(0), gpu.new_stream(1), gpu.new_stream(2)};
    for (int i = 0; i < 120; ++i) {
        const std::size_t device = pick_below(capture.random, 4);
        const OwnedTensor tensor = capture.tensor(DType::f32, {1 + i % 7, 100});
        if (device == 3) {
            capture.submit_host(tensor);
        } else {
            capture.submit(tensor, streams[device], targets[pick_below(capture.random, targets.size())],
                           std::nullopt, static_cast<int>(device));
        }
        if (i % 5 == 4) capture.engine->end_step();
    }
    capture.close_and_compare();
    EXPECT_EQ(capture.engine->device_stats().size(), 3U);
}

TEST(CudaCapture, ASlowWriterIsWaitedForAndNothingIsLost) {
    Gpu gpu;
    CudaCapture capture(gpu, {.blocks = 2, .staging_blocks = 1});
    stub::delay(stub::Kind::dtoh, std::chrono::microseconds(500), std::chrono::microseconds(1000));
    const cuda::Stream stream = gpu.new_stream();
    for (int i = 0; i < 40; ++i) capture.submit(capture.tensor(DType::f32, {1000}), stream);
    capture.close_and_compare();
    const DeviceStats stats = capture.engine->device_stats().at(0);
    EXPECT_GT(stats.host_waits, 0U);
    EXPECT_GT(stats.device_waits, 0U);
    EXPECT_GT(stats.dtoh_seconds, 0.0);
    EXPECT_EQ(stats.peak_staging_bytes, 4096U);
}

// With room in the host ring, a staging ring of one block is waited for on the device alone.
TEST(CudaCapture, TheHostDoesNotWaitForTheCopyStream) {
    Gpu gpu;
    CudaCapture capture(gpu, {.blocks = 32, .staging_blocks = 1});
    const cuda::Stream stream = gpu.new_stream();
    std::vector<OwnedTensor> tensors;
    for (int i = 0; i < 16; ++i) tensors.push_back(capture.tensor(DType::f32, {1024}));
    stub::hold(stub::Kind::dtoh);
    for (const OwnedTensor& tensor : tensors) capture.submit(tensor, stream);
    stub::release();
    capture.close_and_compare();
    EXPECT_EQ(capture.engine->device_stats().at(0).host_waits, 0U);
    EXPECT_GE(capture.engine->device_stats().at(0).device_waits, 15U);
}

TEST(CudaCapture, DropAndFailLeaveTheRestWhole) {
    for (const Overflow overflow : {Overflow::drop, Overflow::fail}) {
        Gpu gpu;
        CudaCapture capture(gpu, {.blocks = 2, .staging_blocks = 1, .overflow = overflow});
        const cuda::Stream stream = gpu.new_stream();
        stub::hold(stub::Kind::dtoh);
        std::size_t refused = 0;
        for (int i = 0; i < 6; ++i) {
            const std::string error =
                error_of([&] { capture.submit(capture.tensor(DType::f32, {700}), stream, DType::i8); });
            refused += error.empty() ? 0 : 1;
            EXPECT_TRUE(error.empty() || error.find("the ring is full") != std::string::npos) << error;
        }
        stub::release();
        const std::uint64_t drops = capture.engine->stats().drops;
        EXPECT_GT(overflow == Overflow::drop ? drops : refused, 0U);
        capture.close_and_compare();
    }
}

TEST(CudaCapture, AStreamUnderCaptureIsRefusedAndTheNextTensorIsStored) {
    Gpu gpu;
    CudaCapture capture(gpu);
    const cuda::Stream stream = gpu.new_stream();
    const OwnedTensor tensor = capture.tensor(DType::f32, {8});
    const TensorView view = gpu.put(tensor, stream);
    gpu.synchronize(stream);
    stub::set_capturing(stream, true);
    const std::string error = error_of([&] { capture.submit_view(tensor, view); });
    EXPECT_NE(error.find("CUDA graph"), std::string::npos) << error;
    stub::set_capturing(stream, false);
    capture.submit_view(tensor, view);
    capture.close_and_compare();
}

// Another thread captures a CUDA graph, as torch does it: neither the writer nor a tap may break that.
TEST(CudaCapture, AGraphThatAnotherThreadCapturesIsNotBroken) {
    Gpu gpu;
    CudaCapture capture(gpu, {.blocks = 3, .staging_blocks = 1});
    const cuda::Stream stream = gpu.new_stream();
    stub::set_global_capture(true);
    capture.engine->open_device(0, {});
    std::vector<OwnedTensor> tensors;
    for (int i = 0; i < 20; ++i) tensors.push_back(capture.tensor(DType::f32, {700}));
    std::vector<TensorView> views;
    stub::set_global_capture(false);
    for (const OwnedTensor& tensor : tensors) views.push_back(gpu.put(tensor, stream));
    stub::set_global_capture(true);
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        capture.submit_view(tensors[i], views[i], i % 2 == 0 ? DType::f32 : DType::bf16);
    }
    capture.engine->close();
    stub::set_global_capture(false);
    capture.close_and_compare();
}

// Python compiles kernels under the engine's mutex, and a signal handler or a finalizer may come back to the engine.
TEST(CudaCapture, AnEngineThatIsUsedFromWithinItsOwnTapSaysSo) {
    Gpu gpu;
    CudaCapture capture(gpu);
    const cuda::Stream stream = gpu.new_stream();
    std::string error;
    capture.kernels.meanwhile = [&] {
        error = error_of([&] { static_cast<void>(capture.engine->stats()); });
        capture.kernels.meanwhile = nullptr;
    };
    capture.submit(capture.tensor(DType::f32, {8}), stream, DType::bf16);
    EXPECT_EQ(error, "a capture cannot be used from within one of its own taps");
    capture.close_and_compare();
}

// What compiles a kernel may leave another device's context current.
TEST(CudaCapture, AContextThatTheCompilerLeavesBehindIsReplaced) {
    Gpu gpu(2);
    CudaCapture capture(gpu);
    const cuda::Stream stream = gpu.new_stream(1);
    capture.kernels.meanwhile = [&] {
        gpu.driver().check(gpu.driver().context_set_current(gpu.context(0)), "set the other context");
    };
    capture.submit(capture.tensor(DType::f32, {8}), stream, DType::bf16, std::nullopt, 1);
    capture.submit(capture.tensor(DType::f32, {3, 8}), stream, DType::i8, std::nullopt, 1);
    capture.close_and_compare();
}

// A stream that ended with its pass, and another with its handle: it too waits for the block's last copy.
TEST(CudaCapture, AStreamWithTheHandleOfAnEarlierOneWaitsForItself) {
    Gpu gpu;
    CudaCapture capture(gpu, {.blocks = 8, .staging_blocks = 1});
    capture.engine->open_device(0, {});
    const cuda::Stream stream = gpu.new_stream();
    stub::hold(stub::Kind::dtoh);
    capture.submit(capture.tensor(DType::f32, {1024}), stream);  // its copy stands still
    capture.submit(capture.tensor(DType::f32, {100}), stream);   // waits on the device
    const std::uint64_t before = stub::call_count("cuStreamWaitEvent");
    capture.engine->end_step();
    capture.submit(capture.tensor(DType::f32, {100}), stream);     // who knows whether it is the same
    EXPECT_EQ(stub::call_count("cuStreamWaitEvent"), before + 2);  // of the copy stream, and of this one
    stub::release();
    capture.close_and_compare();
}

TEST(CudaCapture, AKernelThatCannotBeMadeIsToldBeforeAnythingIsStored) {
    Gpu gpu;
    CudaCapture capture(gpu);
    const cuda::Stream stream = gpu.new_stream();
    capture.kernels.refusal = "no kernels today";
    const std::string error =
        error_of([&] { capture.submit(capture.tensor(DType::f32, {8}), stream, DType::bf16); });
    EXPECT_EQ(error, "no kernels today");
    capture.submit(capture.tensor(DType::f32, {8}), stream);
    capture.kernels.refusal.clear();
    capture.submit(capture.tensor(DType::f32, {8}), stream, DType::bf16);
    capture.close_and_compare();
}

TEST(CudaCapture, ARingThatCannotBeLockedIsMadeSmaller) {
    Gpu gpu;
    stub::set_lockable_bytes(3U << 20);  // of which the tables of positions take one
    CudaCapture capture(gpu, {.blocks = 16, .block_bytes = 1 << 18});
    const cuda::Stream stream = gpu.new_stream();
    for (int i = 0; i < 30; ++i) capture.submit(capture.tensor(DType::f32, {40000}), stream);
    const std::vector<std::string> warnings = capture.engine->warnings();
    ASSERT_EQ(warnings.size(), 1U);
    EXPECT_EQ(warnings[0].find("only 2 MiB of the ring's 4 MiB could be page-locked"), 0U) << warnings[0];
    capture.close_and_compare();
    EXPECT_EQ(capture.engine->stats().ring_bytes, 2U << 20);
    EXPECT_EQ(capture.engine->stats().pinned_bytes, 2U << 20);
}

TEST(CudaCapture, ARingThatCannotBeLockedAtAllIsOneLine) {
    Gpu gpu;
    stub::set_lockable_bytes(1U << 20);
    CudaCapture capture(gpu, {.blocks = 16, .block_bytes = 1 << 18});
    const std::string error = error_of([&] { capture.engine->open_device(0, {}); });
    EXPECT_NE(error.find("cannot page-lock memory for the ring"), std::string::npos) << error;
    EXPECT_NE(error.find("CUDA_ERROR_OUT_OF_MEMORY"), std::string::npos) << error;
    // Captures from the host go on.
    capture.submit_host(capture.tensor(DType::f32, {40}));
    capture.close_and_compare();
}

TEST(CudaCapture, TooLittleDeviceMemoryIsOneLine) {
    Gpu gpu;
    stub::set_memory(1000, 1 << 30);
    CudaCapture capture(gpu);
    OwnedTensor tensor = capture.tensor(DType::f32, {8});
    tensor.view.device = 0;
    const std::string error = error_of([&] { capture.submit_view(tensor, tensor.view); });
    EXPECT_NE(error.find("too little free memory"), std::string::npos) << error;
}

TEST(CudaCapture, ADeviceThatIsNotThereIsOneLine) {
    Gpu gpu;
    CudaCapture capture(gpu);
    EXPECT_EQ(error_of([&] { capture.engine->open_device(5, {}); }),
              "there is no CUDA device 5 here: the driver shows 1");
}

}  // namespace
}  // namespace nsf::testing_support
