#include "cuda/driver.hpp"

#include <dlfcn.h>

#include <cstdlib>

#include "core/error.hpp"

namespace nsf::cuda {
namespace {

constexpr const char* default_library = "libcuda.so.1";
constexpr const char* library_variable = "NEUROSCOPE_FAST_CUDA_DRIVER";

std::string last_error() {
    const char* text = dlerror();
    return text == nullptr ? "unknown reason" : text;
}

template <typename Pointer>
void look_up(void* handle, const char* symbol, const std::string& library, Pointer& pointer) {
    void* found = dlsym(handle, symbol);
    if (found == nullptr) {
        throw EngineError("the CUDA driver " + library + " has no " + symbol + ": update the driver");
    }
    pointer = reinterpret_cast<Pointer>(found);
}

Driver open_driver() {
    const char* named = std::getenv(library_variable);
    Driver driver;
    driver.library = named != nullptr && *named != '\0' ? named : default_library;
    // Never closed: streams and events may be given back by destructors at the end of the process.
    void* handle = dlopen(driver.library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        throw EngineError("the CUDA driver cannot be loaded (" + last_error() +
                          "): install it, or name it in " + library_variable);
    }
#define NSF_LOOK_UP(name, symbol, parameters) look_up(handle, symbol, driver.library, driver.name);
    NSF_CUDA_DRIVER_FUNCTIONS(NSF_LOOK_UP)
#undef NSF_LOOK_UP
    driver.check(driver.init(0), "start the CUDA driver");
    driver.check(driver.driver_get_version(&driver.version), "ask for the driver's version");
    return driver;
}

}  // namespace

const Driver& Driver::get() {
    static const Driver driver = open_driver();  // tried again at the next call where it throws
    return driver;
}

void Driver::fail(Result result, const char* operation) const {
    const char* name = nullptr;
    const char* text = nullptr;
    if (get_error_name(result, &name) != success || name == nullptr) name = "an unknown error";
    if (get_error_string(result, &text) != success || text == nullptr) text = "no description";
    throw EngineError(std::string("CUDA: cannot ") + operation + ": " + name + " (" + text + ", error " +
                      std::to_string(result) + ")");
}

void Driver::make_current(Context context) const {
    Context current = nullptr;
    check(context_get_current(&current), "ask for the current context");
    if (current != context) check(context_set_current(context), "go back to the device's context");
}

CurrentContext::CurrentContext(const Driver& driver, Context context) : driver_(driver) {
    Context current = nullptr;
    driver.check(driver.context_get_current(&current), "ask for the current context");
    if (current == context) return;
    driver.check(driver.context_push(context), "enter the device's context");
    pushed_ = true;
}

CurrentContext::~CurrentContext() {
    Context popped = nullptr;
    // Fails only where the driver is gone, and then there is no context to go back to.
    if (pushed_) static_cast<void>(driver_.context_pop(&popped));
}

}  // namespace nsf::cuda
