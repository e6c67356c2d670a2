// Modules, functions and launches. An image is text: a line "stub", then the name of a kernel on each line.
#include <algorithm>
#include <cstring>
#include <sstream>
#include <string>

#include "runtime.hpp"

namespace nsf::stub {
namespace {

constexpr std::string_view image_start = "stub\n";
constexpr unsigned most_threads = 1024;
constexpr unsigned most_blocks = 65535;  // in y and z
constexpr int attribute_shared_opt_in = 97;

unsigned shared_opt_in(const Runtime& state) {
    const auto found = state.attributes.find(attribute_shared_opt_in);
    return found == state.attributes.end() ? 0 : static_cast<unsigned>(found->second);
}

// False where the driver would refuse the launch.
bool dimensions_are_valid(const Launch& launch) {
    if (launch.grid_x == 0 || launch.grid_y == 0 || launch.grid_z == 0) return false;
    if (launch.block_x == 0 || launch.block_y == 0 || launch.block_z == 0 || launch.block_z > 64)
        return false;
    if (launch.grid_x > 0x7FFFFFFFU || launch.grid_y > most_blocks || launch.grid_z > most_blocks)
        return false;
    if (launch.block_x > most_threads || launch.block_y > most_threads) return false;
    return launch.block_x * launch.block_y * launch.block_z <= most_threads;
}

// The values are copied now, as the driver does: the caller's variables may be gone when the kernel runs.
bool copy_values(Operation& operation, void** parameters) {
    const std::vector<Parameter>& expected = operation.kernel->parameters;
    constexpr std::size_t slot = 16;  // each value is aligned for whatever it is
    std::size_t all = 0;
    for (const Parameter& parameter : expected) all += (parameter.bytes + slot - 1) / slot * slot;
    operation.values.resize(all);
    std::size_t place = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        if (parameters == nullptr || parameters[i] == nullptr) return false;
        std::memcpy(operation.values.data() + place, parameters[i], expected[i].bytes);
        operation.places.push_back(operation.values.data() + place);
        place += (expected[i].bytes + slot - 1) / slot * slot;
    }
    operation.launch.parameters = operation.places.data();
    return true;
}

}  // namespace

extern "C" {

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
    return call("cuModuleLoadData", Needs::context, [&](Caller& caller) {
        if (would_break_a_capture(caller)) return code::capture_unsupported;
        if (module == nullptr || image == nullptr) return code::invalid_value;
        const auto* text = static_cast<const char*>(image);
        if (std::strncmp(text, image_start.data(), image_start.size()) != 0) return code::invalid_image;
        Module made{caller.context, {}};
        std::istringstream lines(text + image_start.size());
        for (std::string line; std::getline(lines, line);) {
            if (!line.empty()) made.names.push_back(line);
        }
        const std::uint64_t handle = caller.state.new_handle(2);
        caller.state.modules.emplace(handle, std::move(made));
        *module = handle_of<CUmodule>(handle);
        return code::success;
    });
}

CUresult cuModuleUnload(CUmodule handle) {
    return call("cuModuleUnload", Needs::context_to_clean_up, [&](Caller& caller) {
        if (would_break_a_capture(caller)) return code::capture_unsupported;
        const Module* module = find(caller.state.modules, number(handle));
        if (module == nullptr || module->context != caller.context) return code::invalid_handle;
        std::erase_if(caller.state.functions,
                      [&](const auto& entry) { return entry.second.module == number(handle); });
        caller.state.modules.erase(number(handle));
        return code::success;
    });
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule handle, const char* name) {
    return call("cuModuleGetFunction", Needs::context, [&](Caller& caller) {
        if (function == nullptr || name == nullptr) return code::invalid_value;
        const Module* module = find(caller.state.modules, number(handle));
        if (module == nullptr || module->context != caller.context) return code::invalid_handle;
        const auto kernel = caller.state.kernels.find(std::string_view(name));
        const auto& names = module->names;
        if (kernel == caller.state.kernels.end() ||
            std::find(names.begin(), names.end(), name) == names.end()) {
            return code::not_found;
        }
        const std::uint64_t made = caller.state.new_handle(3);
        caller.state.functions.emplace(made, Function{number(handle), caller.context, kernel->second});
        *function = handle_of<CUfunction>(made);
        return code::success;
    });
}

CUresult cuFuncSetAttribute(CUfunction handle, int attribute, int value) {
    return call("cuFuncSetAttribute", Needs::context, [&](Caller& caller) {
        Function* function = find(caller.state.functions, number(handle));
        if (function == nullptr || function->context != caller.context) return code::invalid_handle;
        if (attribute != function_max_dynamic_shared) return code::success;
        if (value < 0 || static_cast<unsigned>(value) > shared_opt_in(caller.state))
            return code::invalid_value;
        function->shared_limit = static_cast<unsigned>(value);
        return code::success;
    });
}

CUresult cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                        CUstream stream_handle, void** parameters, void** extra) {
    return call("cuLaunchKernel", Needs::context, [&](Caller& caller) {
        const Function* function = find(caller.state.functions, number(handle));
        if (function == nullptr || function->context != caller.context) return code::invalid_handle;
        Stream* stream = caller.stream(stream_handle);
        if (stream == nullptr) return code::invalid_handle;
        if (extra != nullptr) return code::not_supported;
        auto operation = std::make_unique<Operation>();
        operation->kind = Kind::kernel;
        operation->kernel = function->kernel;
        Launch& launch = operation->launch;
        launch.grid_x = grid_x;
        launch.grid_y = grid_y;
        launch.grid_z = grid_z;
        launch.block_x = block_x;
        launch.block_y = block_y;
        launch.block_z = block_z;
        launch.shared_bytes = shared_bytes;
        launch.context = caller.context;
        if (!dimensions_are_valid(launch) || shared_bytes > function->shared_limit)
            return code::invalid_value;
        if (!copy_values(*operation, parameters)) return code::invalid_value;
        caller.enqueue(*stream, std::move(operation));
        return code::success;
    });
}

}  // extern "C"

}  // namespace nsf::stub
