#include "cuda/primary_context.hpp"

#include <string>

#include "core/error.hpp"

namespace nsf::cuda {

PrimaryContext::PrimaryContext(const Driver& driver, int device) : driver_(driver) {
    int count = 0;
    driver.check(driver.device_get_count(&count), "count the devices");
    if (device >= count) {
        throw EngineError("there is no CUDA device " + std::to_string(device) + " here: the driver shows " +
                          std::to_string(count));
    }
    driver.check(driver.device_get(&handle_, device), "find the device");
    driver.check(driver.primary_context_retain(&context_, handle_), "take hold of the device's context");
}

PrimaryContext::~PrimaryContext() { static_cast<void>(driver_.primary_context_release(handle_)); }

}  // namespace nsf::cuda
