// A capture from the stub's devices, that remembers what it must have stored.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "captured.hpp"
#include "core/engine.hpp"
#include "core/error.hpp"
#include "cuda/cuda_transfer.hpp"
#include "gpu.hpp"
#include "stub_kernels.hpp"

namespace nsf::testing_support {

struct CudaSizes {
    std::size_t blocks = 4;
    std::size_t block_bytes = 4096;
    std::size_t staging_blocks = 2;
    Overflow overflow = Overflow::block;
    bool in_memory = false;
    std::size_t streams = 2;  // at least
};

class CudaCapture {
  public:
    explicit CudaCapture(Gpu& gpu, CudaSizes sizes = {}) : gpu_(gpu), in_memory_(sizes.in_memory) {
        EngineOptions options;
        options.ring_bytes = sizes.blocks * sizes.block_bytes;
        options.block_bytes = sizes.block_bytes;
        options.overflow = sizes.overflow;
        options.folder = sizes.in_memory ? "" : folder_.path();
        cuda::CudaOptions cuda_options;
        cuda_options.staging_bytes = sizes.staging_blocks * sizes.block_bytes;
        cuda_options.staging_share = 1.0;
        std::vector<Stream> streams{{"hook", false}, {"other", true}};
        while (streams.size() < sizes.streams)
            streams.push_back({"hook_" + std::to_string(streams.size()), false});
        engine.emplace(std::move(options), std::move(streams), [this, cuda_options](BlockRing& ring) {
            return std::make_unique<cuda::CudaTransfer>(ring, cuda_options, kernels);
        });
    }

    Random random{std::uint64_t{4711}};
    StubKernels kernels;
    std::optional<Engine> engine;
    Tensors expected;

    // Computes the tensor on the stream and captures it; on the host it is `tensor`.
    void submit(const OwnedTensor& tensor, cuda::Stream stream, std::optional<DType> target = std::nullopt,
                const std::optional<Selection>& selection = std::nullopt, int device = 0) {
        submit_view(tensor, gpu_.put(tensor, stream, device), target, selection);
    }
    // The same, of a tensor that is on the device already.
    void submit_view(const OwnedTensor& tensor, const TensorView& on_device,
                     std::optional<DType> target = std::nullopt,
                     const std::optional<Selection>& selection = std::nullopt) {
        Kept kept;
        kept.view = on_device;
        kept.selection = selection;
        kept.shape = selected_shape(tensor.view, selection ? &*selection : nullptr);
        const Origin origin{0, 0, steps_++, 0};
        const std::uint64_t drops = engine->stats().drops;
        engine->submit(origin, kept, target.value_or(tensor.view.dtype));
        if (engine->stats().drops > drops) return;
        kept.view = tensor.view;
        expect_stored(expected, engine->streams()[0], origin, kept, target.value_or(tensor.view.dtype));
    }
    void submit_host(const OwnedTensor& tensor) {
        const Origin origin{0, 0, steps_++, 0};
        engine->submit(origin, keep_all(tensor.view), tensor.view.dtype);
        expect_stored(expected, engine->streams()[0], origin, keep_all(tensor.view), tensor.view.dtype);
    }
    OwnedTensor tensor(DType dtype, const Shape& shape) { return contiguous_tensor(random, dtype, shape); }

    void close_and_compare() {
        engine->close();
        expect_captured(*engine, expected);
        if (!in_memory_) expect_same(read_run(folder_), expected);
        EXPECT_EQ(stub::counters().unpinned(), 0U);
    }
    const TempFolder& folder() const { return folder_; }

  private:
    Gpu& gpu_;
    const bool in_memory_;
    const TempFolder folder_;
    std::uint32_t steps_ = 0;
};

// What an action throws, as text; "" where it throws nothing.
template <typename Action>
std::string error_of(Action action) {
    try {
        action();
    } catch (const std::exception& error) {
        return error.what();
    }
    return "";
}

}  // namespace nsf::testing_support
