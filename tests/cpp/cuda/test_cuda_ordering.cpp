// Every wait that orders the engine's work, each in a test that fails without it. The build makes this program once
// as it is and once for each wait with that one left out (NSF_LEAVE_OUT_WAIT); ctest expects those to fail in the
// test of that wait's name.
#include <thread>

#include "graph_fixture.hpp"

namespace nsf::testing_support {
namespace {

using stub::Kind;

// A tensor that is computed late must not be copied to the host before.
TEST(Ordering, CopyForCompute) {
    Gpu gpu;
    CudaCapture capture(gpu);
    const cuda::Stream stream = gpu.new_stream();
    capture.engine->open_device(0, {});
    stub::hold_stream(stream);
    capture.submit(capture.tensor(DType::f32, {100}), stream);
    capture.engine->end_step();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));  // a copy that does not wait is done by now
    stub::release_stream(stream);
    capture.close_and_compare();
}

// The staging block is written again while its copy to the host stands still.
TEST(Ordering, ComputeForCopy) {
    Gpu gpu;
    CudaCapture capture(gpu, {.blocks = 8, .staging_blocks = 1});
    const cuda::Stream stream = gpu.new_stream();
    capture.engine->open_device(0, {});
    stub::hold(Kind::dtoh);
    capture.submit(capture.tensor(DType::f32, {1024}), stream);
    capture.submit(capture.tensor(DType::f32, {1024}), stream);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    stub::release();
    capture.close_and_compare();
}

// Two streams share a staging block; each of them must wait for its last copy.
TEST(Ordering, OtherComputeForCopy) {
    Gpu gpu;
    CudaCapture capture(gpu, {.blocks = 8, .staging_blocks = 1});
    const cuda::Stream first = gpu.new_stream();
    const cuda::Stream second = gpu.new_stream();
    capture.engine->open_device(0, {});
    stub::hold(Kind::dtoh);
    capture.submit(capture.tensor(DType::f32, {1024}), first);
    capture.submit(capture.tensor(DType::f32, {100}), first);
    capture.submit(capture.tensor(DType::f32, {100}), second);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    stub::release();
    capture.close_and_compare();
}

// One batch takes what two streams have written; the first of them is late.
TEST(Ordering, CopyForOtherCompute) {
    Gpu gpu;
    CudaCapture capture(gpu);
    const cuda::Stream first = gpu.new_stream();
    const cuda::Stream second = gpu.new_stream();
    capture.engine->open_device(0, {});
    stub::hold_stream(first);
    capture.submit(capture.tensor(DType::f32, {100}), first);
    capture.submit(capture.tensor(DType::f32, {100}), second);
    capture.engine->end_step();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    stub::release_stream(first);
    capture.close_and_compare();
}

// The writer has the block before the bytes are there.
TEST(Ordering, WriterForCopy) {
    Gpu gpu;
    CudaCapture capture(gpu);
    const cuda::Stream stream = gpu.new_stream();
    capture.engine->open_device(0, {});
    stub::hold(Kind::dtoh);
    capture.submit(capture.tensor(DType::f32, {1024}), stream);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    stub::release();
    capture.close_and_compare();
}

// A capture that broke still has copies under way when it gives its memory back: nobody waits for those but close().
TEST(Ordering, CloseForCopy) {
    Gpu gpu;
    {
        CudaCapture capture(gpu, {.blocks = 8});
        const cuda::Stream stream = gpu.new_stream();
        capture.engine->open_device(0, {});
        capture.submit(capture.tensor(DType::f32, {100}), stream);
        stub::hold(Kind::dtoh);
        capture.engine->end_step();
        // The block cannot be handed over: its next copy, at close, fails when it is asked for.
        capture.submit(capture.tensor(DType::f32, {100}), stream);
        stub::fail_call(1, 1, "cuMemcpyDtoHAsync_v2");
        const std::jthread later = release_after(std::chrono::milliseconds(50));
        EXPECT_NE(error_of([&] { capture.engine->close(); }), "");
    }
    // The stub tells of memory that was given back under an operation.
}

// The same with a kernel that still writes the staging ring.
TEST(Ordering, CloseForCompute) {
    Gpu gpu;
    {
        CudaCapture capture(gpu, {.blocks = 8});
        const cuda::Stream stream = gpu.new_stream();
        capture.engine->open_device(0, {{DType::f32, DType::bf16}});
        stub::hold(Kind::kernel);
        capture.submit(capture.tensor(DType::f32, {100}), stream, DType::bf16);
        stub::fail_call(1, 1, "cuEventRecord");
        const std::jthread later = release_after(std::chrono::milliseconds(50));
        EXPECT_NE(error_of([&] { capture.engine->close(); }), "");
    }
}

// Tables of positions fill their memory and come round while the kernels that read the first ones stand still.
TEST(Ordering, ProducerForTable) {
    Gpu gpu;
    CudaCapture capture(gpu, {.blocks = 64, .block_bytes = 1 << 16, .staging_blocks = 8});
    const cuda::Stream stream = gpu.new_stream();
    capture.engine->open_device(0, {});
    const OwnedTensor tensor = capture.tensor(DType::u8, {1000, 1});
    const TensorView view = gpu.put(tensor, stream);
    gpu.synchronize(stream);
    const std::jthread later = release_after(std::chrono::milliseconds(100));
    stub::hold(Kind::kernel);
    for (int i = 0; i < 6; ++i) {
        Selection selection;
        selection.axis = 0;
        selection.per_row = 40000;
        for (std::size_t k = 0; k < selection.per_row; ++k) {
            selection.indices.push_back(static_cast<std::int64_t>(pick_below(capture.random, 1000)));
        }
        capture.submit_view(tensor, view, std::nullopt, selection);
    }
    capture.close_and_compare();
}

// The second half of a record is read by a kernel that comes after the batch with the first half: its table must
// live on until the next batch.
TEST(Ordering, ATableIsKeptForEveryPieceOfARecord) {
    Gpu gpu;
    CudaCapture capture(gpu, {.blocks = 64, .block_bytes = 1 << 16, .staging_blocks = 8});
    const cuda::Stream stream = gpu.new_stream();
    capture.engine->open_device(0, {});
    const OwnedTensor tensor = capture.tensor(DType::u8, {1000, 1});
    const TensorView view = gpu.put(tensor, stream);
    gpu.synchronize(stream);
    const auto submit = [&] {
        Selection selection;
        selection.axis = 0;
        selection.per_row = 40000;
        for (std::size_t k = 0; k < selection.per_row; ++k) {
            selection.indices.push_back(static_cast<std::int64_t>(pick_below(capture.random, 1000)));
        }
        capture.submit_view(tensor, view, std::nullopt, selection);
    };
    stub::hold(Kind::kernel);
    stub::step(Kind::kernel, 2);  // the first record, and the first half of the second
    submit();
    submit();
    stub::wait_until_executed(Kind::dtoh, 1);
    const std::jthread later = release_after(std::chrono::milliseconds(200));
    for (int i = 0; i < 4; ++i) submit();
    capture.close_and_compare();
}

// More batches than there are events, while the first copy stands still.
TEST(Ordering, ProducerForTicket) {
    Gpu gpu;
    CudaCapture capture(gpu, {.blocks = 8, .block_bytes = 1 << 16, .staging_blocks = 8, .in_memory = true});
    const cuda::Stream stream = gpu.new_stream();
    capture.engine->open_device(0, {});
    stub::hold(Kind::dtoh);
    const std::jthread later = release_after(std::chrono::milliseconds(200));
    for (std::size_t i = 0; i < cuda::CopyStream::slots + 40; ++i) {
        capture.submit(capture.tensor(DType::f32, {16}), stream);
        capture.engine->end_step();
    }
    EXPECT_GT(capture.engine->device_stats().at(0).host_waits, 0U);
    capture.close_and_compare();
}

// A replay on another stream, while what the one before it left in its slots is still being copied.
TEST(Ordering, ReplayForSlots) {
    Gpu gpu;
    CudaCapture capture(gpu, {.blocks = 8, .staging_blocks = 4, .streams = 2});
    GraphedModel model(gpu, capture, {{DType::f32, {1000}, {rule_of(DType::bf16)}}}, 2);
    model.capture_graph();
    stub::hold(Kind::dtod);
    model.replay(gpu.new_stream());
    stub::wait_until_held(Kind::dtod);
    model.replay(gpu.new_stream());
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    stub::release();
    capture.close_and_compare();
}

}  // namespace
}  // namespace nsf::testing_support
