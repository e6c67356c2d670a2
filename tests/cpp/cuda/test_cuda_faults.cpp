// The driver fails: at every call, in every operation, with the device lost. What was stored is right, what was not is
// said, and nothing is left behind.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "cuda_fixture.hpp"
#include "search_stride.hpp"

namespace nsf::testing_support {
namespace {

struct Outcome {
    std::string first_error;
    bool complete = false;
};

// Everything that a capture does: casts, copies, tables, quantisation, several blocks, steps, the host's own tensors.
Outcome run_scenario(Gpu& gpu) {
    CudaCapture capture(gpu, {.blocks = 4, .staging_blocks = 2});
    const cuda::Stream stream = gpu.new_stream();
    const cuda::Stream other = gpu.new_stream();
    Outcome outcome;
    Tensors promised;
    const auto attempt = [&](auto action) {
        const std::string error = error_of(action);
        if (outcome.first_error.empty()) outcome.first_error = error;
    };
    Selection selection;
    selection.axis = 0;
    selection.per_row = 3;
    selection.indices = {0, 4, 5};
    for (int step = 0; step < 3; ++step) {
        attempt([&] { capture.submit(capture.tensor(DType::f32, {6, 100}), stream, DType::bf16); });
        attempt([&] { capture.submit(capture.tensor(DType::f32, {6, 100}), other, DType::i8); });
        attempt([&] {
            capture.submit(capture.tensor(DType::bf16, {6, 50}), stream, std::nullopt, selection);
        });
        attempt([&] { capture.submit(capture.tensor(DType::f32, {1500}), stream); });
        attempt([&] { capture.submit_host(capture.tensor(DType::f32, {30})); });
        capture.engine->end_step();
    }
    attempt([&] { capture.engine->close(); });
    // A record that was not promised to be whole may be missing; none may be wrong.
    const Tensors stored = read_records(*capture.engine);
    for (const auto& [key, tensor] : stored) {
        const auto found = capture.expected.find(key);
        if (found == capture.expected.end()) {
            // Codes that came through without their scales: whoever reads the records knows to leave them out.
            if (tensor.dtype == "I8" && stored.count(key + "/scale") == 0) continue;
            ADD_FAILURE() << key << " is stored though its tap failed";
            continue;
        }
        EXPECT_TRUE(found->second.bytes == tensor.bytes) << key << " is wrong";
    }
    outcome.complete = stored.size() >= capture.expected.size();
    return outcome;
}

constexpr int refusal = 719;

// Calls without which nothing can be given back.
bool gives_back(std::string_view name) {
    for (const std::string_view each :
         {"cuCtxGetCurrent", "cuCtxPushCurrent_v2", "cuMemFree_v2", "cuMemHostUnregister",
          "cuStreamDestroy_v2", "cuEventDestroy_v2", "cuModuleUnload", "cuDevicePrimaryCtxRelease_v2",
          "cuCtxPopCurrent_v2"}) {
        if (name == each) return true;
    }
    return false;
}

TEST(CudaFaults, AFailureOfAnyCallIsSaidOrDoesNotMatter) {
    std::uint64_t calls = 0;
    std::vector<std::string> names;
    {
        Gpu gpu;
        const std::uint64_t before = stub::call_count();
        EXPECT_TRUE(run_scenario(gpu).complete);
        calls = stub::call_count() - before;
        for (const stub::Call& call : stub::calls(before)) names.emplace_back(call.name);
    }
    ASSERT_GT(calls, 100U);
    // Creating and destroying 2 x 256 events is the same call over and over.
    std::string previous;
    std::size_t repeated = 0;
    for (std::uint64_t n = 1; n <= calls; ++n) {
        repeated = names[n - 1] == previous ? repeated + 1 : 0;
        previous = names[n - 1];
        if (n % (repeated > 3 ? 97 : search_stride) != 0) continue;
        SCOPED_TRACE("call " + std::to_string(n) + ", " + names[n - 1]);
        auto gpu = std::make_unique<Gpu>();
        stub::fail_call(n, refusal);
        Outcome outcome;
        try {
            outcome = run_scenario(*gpu);
        } catch (const std::exception& error) {
            outcome.first_error = error.what();  // the test's own call was hit
        }
        stub::release();
        if (outcome.first_error.empty()) {
            EXPECT_TRUE(outcome.complete);
        } else {
            EXPECT_NE(outcome.first_error.find("CUDA"), std::string::npos) << outcome.first_error;
        }
        // Later ones meet the test's own cleaning up. The writer thread calls too, so that the n-th call is not the same each time.
        gpu->forgive_leftovers = stub::failures_left() > 0;
        for (const stub::Call& call : stub::calls(std::uint64_t{0})) {
            if (call.result == refusal && gives_back(call.name)) gpu->forgive_leftovers = true;
        }
    }
}

TEST(CudaFaults, ALostDeviceKeepsWhatArrivedBefore) {
    std::uint64_t operations = 0;
    {
        Gpu gpu;
        const std::uint64_t before = stub::executed_count();
        run_scenario(gpu);
        operations = stub::executed_count() - before;
    }
    for (std::uint64_t n = 1; n <= operations; n += search_stride) {
        SCOPED_TRACE("operation " + std::to_string(n));
        Gpu gpu;
        gpu.forgive_leftovers = true;  // a lost context takes nothing back
        stub::fail_asynchronously(n, 700);
        Outcome outcome;
        try {
            outcome = run_scenario(gpu);
        } catch (const std::exception& error) {
            outcome.first_error = error.what();
        }
        if (outcome.first_error.empty()) {
            EXPECT_TRUE(outcome.complete);  // lost after the last byte had arrived
        } else {
            EXPECT_NE(outcome.first_error.find("CUDA_ERROR_ILLEGAL_ADDRESS"), std::string::npos)
                << outcome.first_error;
        }
    }
}

TEST(CudaFaults, CloseWaitsForWhatIsUnderWay) {
    Gpu gpu;
    CudaCapture capture(gpu, {.blocks = 8});
    const cuda::Stream stream = gpu.new_stream();
    for (int i = 0; i < 5; ++i) capture.submit(capture.tensor(DType::f32, {900}), stream, DType::bf16);
    stub::hold(stub::Kind::all);
    capture.submit(capture.tensor(DType::f32, {900}), stream, DType::bf16);
    const std::jthread later = release_after(std::chrono::milliseconds(50));
    capture.close_and_compare();
}

TEST(CudaFaults, AnEngineThatIsNeverClosedGivesEverythingBack) {
    Gpu gpu;
    CudaCapture capture(gpu);
    capture.submit(capture.tensor(DType::f32, {900}), gpu.new_stream(), DType::i8);
    capture.engine.reset();
}

TEST(CudaFaults, AForkedChildTouchesNothing) {
    Gpu gpu;
    CudaCapture capture(gpu);
    const cuda::Stream stream = gpu.new_stream();
    const OwnedTensor tensor = capture.tensor(DType::f32, {900});
    const TensorView view = gpu.put(tensor, stream);
    capture.submit_view(tensor, view);
    const pid_t child = fork();
    if (child == 0) {
        const bool refused =
            error_of([&] { capture.submit_view(tensor, view); }).find("fork") != std::string::npos;
        capture.engine->end_step();
        // The child's next large mapping lands where the ring was, which is not mapped in a child.
        constexpr std::size_t large = std::size_t{64} << 20;
        void* memory = mmap(nullptr, large, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        std::vector<void*> filled;
        for (int i = 0; i < 64; ++i) {
            filled.push_back(
                mmap(nullptr, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        }
        capture.engine.reset();
        std::memset(memory, 1, large);  // ends the child if the engine has unmapped it
        for (void* each : filled) std::memset(each, 1, 4 * 4096);
        _exit(refused ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
    capture.submit_view(tensor, view, DType::bf16);
    capture.close_and_compare();
}

}  // namespace
}  // namespace nsf::testing_support
