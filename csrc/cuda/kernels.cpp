#include "cuda/kernels.hpp"

#include <array>
#include <limits>
#include <utility>

#include "core/error.hpp"

namespace nsf::cuda {
namespace {

constexpr unsigned warp_threads = 32;
constexpr unsigned shared_without_asking = 48 << 10;

}  // namespace

Kernels::~Kernels() {
    for (auto& [key, loaded] : loaded_) {
        // Fails only where the driver is gone, and the module with it.
        if (loaded.module != nullptr) static_cast<void>(driver_.module_unload(loaded.module));
    }
}

const Kernels::Loaded& Kernels::find(const KernelRequest& request) {
    const auto known = loaded_.find(request.key());
    if (known != loaded_.end()) return known->second;
    Loaded loaded;
    loaded.image = maker_.make(request, device_);
    Loaded& kept = loaded_.emplace(request.key(), std::move(loaded)).first->second;
    if (kept.image.image.empty()) return kept;
    try {
        driver_.check(driver_.module_load_data(&kept.module, kept.image.image.data()), "load a kernel");
        driver_.check(driver_.module_get_function(&kept.function, kept.module, kept.image.name.c_str()),
                      "find a kernel in its module");
        if (kept.image.shared_bytes > shared_without_asking) {
            driver_.check(driver_.function_set_attribute(kept.function, function_max_dynamic_shared_size,
                                                         static_cast<int>(kept.image.shared_bytes)),
                          "give a kernel its shared memory");
        }
    } catch (...) {
        if (kept.module != nullptr) static_cast<void>(driver_.module_unload(kept.module));
        loaded_.erase(request.key());
        throw;
    }
    return kept;
}

void Kernels::launch(const KernelRequest& request, std::uint64_t grid, Stream stream,
                     const std::vector<std::uint64_t>& arguments) {
    const Loaded& kernel = find(request);
    if (grid > static_cast<std::uint64_t>(std::numeric_limits<int>::max())) {
        throw EngineError("a tensor is too large for one launch: lower block_bytes");
    }
    if (kernel.function == nullptr) {
        kernel.image.launch(static_cast<unsigned>(grid), stream, arguments.data(), arguments.size());
        return;
    }
    std::array<std::uint64_t, most_arguments> values{};  // zeros behind the arguments: the trailing pointers
    std::array<void*, most_arguments> parameters{};
    const std::size_t count = arguments.size() + kernel.image.trailing_pointers;
    if (count > most_arguments) throw EngineError("a kernel has more parameters than can be passed");
    for (std::size_t i = 0; i < count; ++i) {
        if (i < arguments.size()) values[i] = arguments[i];
        parameters[i] = &values[i];
    }
    driver_.check(driver_.launch_kernel(kernel.function, static_cast<unsigned>(grid), 1, 1,
                                        kernel.image.warps * warp_threads, 1, 1, kernel.image.shared_bytes,
                                        stream, parameters.data(), nullptr),
                  "launch a kernel");
}

}  // namespace nsf::cuda
