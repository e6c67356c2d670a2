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
    const auto key = request.key();
    if (last_ != nullptr && last_key_ == key) return *last_;
    const auto known = loaded_.find(key);
    if (known != loaded_.end()) {
        last_ = &known->second;  // a map moves no element
        last_key_ = key;
        return *last_;
    }
    Loaded loaded;
    loaded.image = maker_.make(request, device_);
    driver_.make_current(context_);
    const BesideCaptures beside(driver_);
    Loaded& kept = loaded_.emplace(key, std::move(loaded)).first->second;
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
        loaded_.erase(key);
        throw;
    }
    return kept;
}

void Kernels::launch(const KernelRequest& request, std::uint64_t grid, Stream stream,
                     std::span<const std::uint64_t> arguments) {
    const Loaded& kernel = find(request);
    if (grid > static_cast<std::uint64_t>(std::numeric_limits<int>::max())) {
        throw EngineError("a tensor is too large for one launch: lower block_bytes");
    }
    if (kernel.function == nullptr) {
        const BesideCaptures beside(driver_);  // Triton loads the kernel at its first launch
        kernel.image.launch(static_cast<unsigned>(grid), stream, arguments.data(), arguments.size());
        driver_.make_current(context_);
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
