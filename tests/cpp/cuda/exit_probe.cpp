// Ends the process with a capture that was never closed: `early` destroys the engine after the driver has gone, `late`
// before; with `held`, kernels and copies stand still meanwhile. Exit code 0 and no hang are what ctest looks for.
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "core/engine.hpp"
#include "core/error.hpp"
#include "cuda/cuda_transfer.hpp"
#include "gpu.hpp"
#include "stub_kernels.hpp"
#include "temp_folder.hpp"

namespace {

using namespace nsf;
using namespace nsf::testing_support;

struct Captured {
    TempFolder folder;
    StubKernels kernels;
    std::unique_ptr<Engine> engine;

    void start() {
        EngineOptions options;
        options.folder = folder.path();
        options.ring_bytes = 4 * 4096;
        options.block_bytes = 4096;
        cuda::CudaOptions cuda_options;
        cuda_options.staging_share = 1.0;
        cuda_options.staging_bytes = 2 * 4096;
        engine = std::make_unique<Engine>(
            std::move(options), std::vector<Stream>{{"hook", false}}, [this, cuda_options](BlockRing& ring) {
                return std::make_unique<cuda::CudaTransfer>(ring, cuda_options, kernels);
            });
    }
};

Captured& early() {
    static Captured captured;
    return captured;
}

Captured& late() {
    static Captured captured;
    return captured;
}

}  // namespace

int main(int count, char** arguments) {
    const bool is_early = count > 1 && std::strcmp(arguments[1], "early") == 0;
    const bool is_held = count > 2 && std::strcmp(arguments[2], "held") == 0;
    if (is_early) early();              // registered before the driver's own end, so it is destroyed after it
    static Gpu* const gpu = new Gpu();  // what the model holds is never given back
    Captured& captured = is_early ? early() : late();
    captured.start();
    Random random{std::uint64_t{1}};
    const cuda::Stream stream = gpu->new_stream();
    captured.engine->open_device(0, {{DType::f32, DType::bf16}});
    if (is_held) stub::hold(stub::Kind::all);
    for (std::uint32_t step = 0; step < 3; ++step) {
        const OwnedTensor tensor = contiguous_tensor(random, DType::f32, {1500});
        Kept kept;
        kept.view = gpu->put(tensor, stream);
        kept.shape = kept.view.shape;
        captured.engine->submit({0, 0, step, 0}, kept, DType::bf16);
        captured.engine->end_step();
    }
    // With `late` and held operations the destructor would rightly wait for ever: let them go.
    if (!is_early) stub::release();
    std::puts("left without close");
    return 0;
}
