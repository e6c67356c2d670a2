// A machine with CUDA devices for one test: the stub driver, fresh, and what a model would do on it.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/driver.hpp"
#include "naive_tensor.hpp"
#include "stub_driver/stub_control.hpp"

namespace nsf::testing_support {

// Lets everything go that the test holds, after a while: for tests that wait for it in the meantime.
inline std::jthread release_after(std::chrono::milliseconds pause) {
    return std::jthread([pause] {
        std::this_thread::sleep_for(pause);
        stub::release();
    });
}

class Gpu {
  public:
    explicit Gpu(int devices = 1) {
        setenv("NEUROSCOPE_FAST_CUDA_DRIVER", NSF_STUB_CUDA_PATH, 1);
        stub::reset();
        stub::set_device_count(devices);
        driver_ = &cuda::Driver::get();
        stub::register_kernel("call", {stub::value<std::uint64_t>()}, [](const stub::Launch& launch) {
            (*reinterpret_cast<const std::function<void()>*>(launch.get<std::uint64_t>(0)))();
        });
        for (int number = 0; number < devices; ++number)
            models_.push_back(std::make_unique<Model>(*driver_, number));
    }
    ~Gpu() {
        stub::release();
        models_.clear();
        for (const std::string& left : stub::reset()) {
            if (!forgive_leftovers) ADD_FAILURE() << "the test left behind: " << left;
        }
    }
    Gpu(const Gpu&) = delete;
    Gpu& operator=(const Gpu&) = delete;

    // Where the test has made the driver refuse to take something back.
    bool forgive_leftovers = false;

    const cuda::Driver& driver() const { return *driver_; }
    cuda::Context context(int device = 0) const {
        return models_.at(static_cast<std::size_t>(device))->context;
    }

    cuda::Stream new_stream(int device = 0) {
        Model& model = *models_.at(static_cast<std::size_t>(device));
        const cuda::CurrentContext current(*driver_, model.context);
        cuda::Stream stream = nullptr;
        driver_->check(driver_->stream_create(&stream, cuda::stream_non_blocking), "make a stream");
        model.streams.push_back(stream);
        return stream;
    }

    // Does `work` on the stream's thread, after what was started there before.
    void run(cuda::Stream stream, std::function<void()> work, int device = 0) {
        Model& model = *models_.at(static_cast<std::size_t>(device));
        const cuda::CurrentContext current(*driver_, model.context);
        work_.push_back(std::make_unique<std::function<void()>>(std::move(work)));
        auto value = static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(work_.back().get()));
        std::array<void*, 1> parameters{&value};
        driver_->check(
            driver_->launch_kernel(model.call, 1, 1, 1, 32, 1, 1, 0, stream, parameters.data(), nullptr),
            "launch the test's kernel");
    }
    void synchronize(cuda::Stream stream, int device = 0) {
        const cuda::CurrentContext current(*driver_, context(device));
        driver_->check(driver_->stream_synchronize(stream), "wait for the test's stream");
    }
    // Makes `later` wait for what `earlier` has been given so far, as a model with several streams does.
    void order(cuda::Stream earlier, cuda::Stream later, int device = 0) {
        const cuda::CurrentContext current(*driver_, context(device));
        cuda::Event event = nullptr;
        driver_->check(driver_->event_create(&event, cuda::event_disable_timing), "make an event");
        driver_->check(driver_->event_record(event, earlier), "record the test's event");
        driver_->check(driver_->stream_wait_event(later, event, 0), "wait for the test's event");
        driver_->check(driver_->event_destroy(event), "drop the test's event");
    }

    // Memory on the device; its contents are the stub's poison until something on a stream writes them.
    std::byte* allocate(std::size_t bytes, int device = 0) {
        Model& model = *models_.at(static_cast<std::size_t>(device));
        const cuda::CurrentContext current(*driver_, model.context);
        cuda::Address address = 0;
        driver_->check(driver_->memory_allocate(&address, bytes == 0 ? 1 : bytes),
                       "allocate the test's memory");
        model.memory.push_back(address);
        return reinterpret_cast<std::byte*>(static_cast<std::uintptr_t>(address));
    }

    // The tensor as it will be on the device once `stream` has come so far: computed there, not before.
    TensorView put(const OwnedTensor& tensor, cuda::Stream stream, int device = 0) {
        std::byte* memory = allocate(tensor.memory.size(), device);
        run(
            stream,
            [memory, contents = tensor.memory] {
                if (!contents.empty()) std::memcpy(memory, contents.data(), contents.size());
            },
            device);
        TensorView view = tensor.view;
        view.data = memory + (tensor.view.data - tensor.memory.data());
        view.device = device;
        view.stream = stream;
        return view;
    }

  private:
    // What torch and the model hold of one device.
    struct Model {
        Model(const cuda::Driver& its_driver, int number) : driver(its_driver) {
            driver.check(driver.device_get(&handle, number), "find the device");
            driver.check(driver.primary_context_retain(&context, handle), "retain the context");
            const cuda::CurrentContext current(driver, context);
            driver.check(driver.module_load_data(&module, "stub\ncall\n"), "load the test's kernel");
            driver.check(driver.module_get_function(&call, module, "call"), "find the test's kernel");
        }
        ~Model() {
            // A lost context takes nothing back, and the test has seen its error.
            {
                cuda::Context popped = nullptr;
                const bool entered = driver.context_push(context) == cuda::success;
                for (cuda::Stream stream : streams) {
                    static_cast<void>(driver.stream_synchronize(stream));
                    static_cast<void>(driver.stream_destroy(stream));
                }
                static_cast<void>(driver.stream_synchronize(nullptr));
                for (const cuda::Address address : memory) static_cast<void>(driver.memory_free(address));
                static_cast<void>(driver.module_unload(module));
                if (entered) static_cast<void>(driver.context_pop(&popped));
            }
            static_cast<void>(driver.primary_context_release(handle));
        }
        Model(const Model&) = delete;
        Model& operator=(const Model&) = delete;

        const cuda::Driver& driver;
        int handle = 0;
        cuda::Context context = nullptr;
        cuda::Module module = nullptr;
        cuda::Function call = nullptr;
        std::vector<cuda::Stream> streams;
        std::vector<cuda::Address> memory;
    };

    const cuda::Driver* driver_ = nullptr;
    // Kept to the end: a stream may never come to what it was given, and none tells when it is done with it.
    std::vector<std::unique_ptr<std::function<void()>>> work_;
    std::vector<std::unique_ptr<Model>> models_;
};

}  // namespace nsf::testing_support
