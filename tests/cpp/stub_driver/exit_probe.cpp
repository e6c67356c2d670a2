// Ends the process while the stub's streams are held, waiting, sleeping and running. Exit code 0 and no report of a
// sanitizer mean that nothing crashed, hung or was refused wrongly; ctest runs it.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "cuda_abi.hpp"
#include "stub_control.hpp"

namespace {

using namespace nsf::stub;
using namespace std::chrono_literals;

void require(bool good, const char* what) {
    if (good) return;
    std::fprintf(stderr, "exit probe: %s\n", what);
    std::_Exit(1);
}

// Made before cuInit, so destroyed after the driver's own end.
struct LateCaller {
    CUstream stream = nullptr;
    CUdeviceptr memory = 0;

    ~LateCaller() {
        require(cuStreamSynchronize(stream) == code::deinitialized, "a synchronisation after the end");
        require(cuMemFree_v2(memory) == code::deinitialized, "cuMemFree after the end");
        require(cuInit(0) == code::deinitialized, "cuInit after the end");
    }
};
LateCaller late;
std::atomic<bool> running{false};

CUstream new_stream() {
    CUstream stream = nullptr;
    require(cuStreamCreate(&stream, stream_non_blocking) == 0, "cuStreamCreate");
    return stream;
}

}  // namespace

int main() {
    CUcontext context = nullptr;
    require(cuInit(0) == 0 && cuDevicePrimaryCtxRetain(&context, 0) == 0 && cuCtxPushCurrent_v2(context) == 0,
            "the start");
    CUdeviceptr memory = 0;
    require(cuMemAlloc_v2(&memory, 4096) == 0, "cuMemAlloc");
    register_kernel("slow", {}, [](const Launch&) {
        running = true;
        std::this_thread::sleep_for(50ms);
    });
    CUmodule module = nullptr;
    CUfunction slow = nullptr;
    require(cuModuleLoadData(&module, "stub\nslow\n") == 0, "cuModuleLoadData");
    require(cuModuleGetFunction(&slow, module, "slow") == 0, "cuModuleGetFunction");
    CUevent event = nullptr;
    require(cuEventCreate(&event, 0) == 0, "cuEventCreate");

    const CUstream held = new_stream(), waiting = new_stream(), sleeping = new_stream(), busy = new_stream();
    hold_stream(held);
    delay_stream(sleeping, 1h, 1h);
    for (const CUstream stream : {held, sleeping}) {
        require(cuMemcpyDtoDAsync_v2(memory, memory + 2048, 2048, stream) == 0, "a copy");
    }
    require(cuEventRecord(event, held) == 0 && cuStreamWaitEvent(waiting, event, 0) == 0, "a wait");
    for (int i = 0; i < 100; ++i) {
        require(cuLaunchKernel(slow, 1, 1, 1, 1, 1, 1, 0, busy, nullptr, nullptr) == 0, "a launch");
    }
    std::thread([=] {
        cuCtxPushCurrent_v2(context);
        const CUresult result = cuStreamSynchronize(waiting);
        require(result == code::deinitialized, "a synchronisation that the end interrupts");
    }).detach();
    wait_until_held_stream(held);
    while (!running) std::this_thread::yield();
    late.stream = held;
    late.memory = memory;
    return 0;
}
