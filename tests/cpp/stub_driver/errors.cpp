// Names and descriptions of results. Pure functions: neither counted nor logged, and good in a forked child too.
#include <algorithm>
#include <array>

#include "cuda_abi.hpp"

namespace nsf::stub {
namespace {

struct Text {
    CUresult result;
    const char* name;
    const char* description;
};

constexpr std::array texts{
    Text{0, "CUDA_SUCCESS", "no error"},
    Text{1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    Text{2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    Text{3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    Text{4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    Text{100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    Text{101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    Text{200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    Text{201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    Text{209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    Text{214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    Text{400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    Text{500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    Text{600, "CUDA_ERROR_NOT_READY", "device not ready"},
    Text{700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    Text{701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    Text{709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    Text{712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
         "part or all of the requested memory range is already mapped"},
    Text{713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
         "pointer does not correspond to a registered memory region"},
    Text{719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    Text{801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    Text{900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    Text{905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
         "dependency created on uncaptured work in another stream"},
    Text{907, "CUDA_ERROR_CAPTURED_EVENT",
         "operation not permitted on an event last recorded in a capturing stream"},
    Text{999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

CUresult look_up(CUresult error, const char** text, const char* Text::*member) {
    if (text == nullptr) return code::invalid_value;
    const auto* found =
        std::find_if(texts.begin(), texts.end(), [&](const Text& t) { return t.result == error; });
    *text = found == texts.end() ? nullptr : (*found).*member;
    return found == texts.end() ? code::invalid_value : code::success;
}

}  // namespace

extern "C" {

CUresult cuGetErrorName(CUresult error, const char** text) { return look_up(error, text, &Text::name); }

CUresult cuGetErrorString(CUresult error, const char** text) {
    return look_up(error, text, &Text::description);
}

}  // extern "C"

}  // namespace nsf::stub
